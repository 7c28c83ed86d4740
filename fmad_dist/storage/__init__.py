"""Files at any fsspec URL: whole or absent, retried while the storage is away, and errors that name the URL."""

from fmad_dist.storage.scratch import TEMPORARY_PREFIX
from fmad_dist.storage.store import Store, use_endpoint

__all__ = ["TEMPORARY_PREFIX", "Store", "use_endpoint"]
