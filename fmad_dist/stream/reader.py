"""Bytes of one sample out of a shard, verified against the index and decoded."""

import hashlib

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.images import open_image, to_rgb
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import Dataset, Sample, Span


class SampleReader:
    """Reads rows of one dataset by byte range. Safe to pickle: storage is opened lazily in each process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.store = Store(dataset.url)

    def image(self, row: int) -> np.ndarray:
        """The stored rendition as uint8 [H, W, 3].

        Raises:
            UserError: the shard is missing, truncated or changed.
        """
        sample = self.dataset.sample(row)
        data = self._verified(sample, sample.image)
        return np.asarray(to_rgb(open_image(data, sample.sample_id), sample.sample_id))

    def masks(self, row: int) -> list[np.ndarray]:
        """The sample's stored masks, undecoded values [H, W] each; empty for a normal image."""
        sample = self.dataset.sample(row)
        return [np.asarray(open_image(self._verified(sample, span), sample.sample_id)) for span in sample.masks]

    def _where(self, sample: Sample) -> str:
        return self.store.url_of(sample.shard)

    def _verified(self, sample: Sample, span: Span) -> bytes:
        data = self.store.read_range(sample.shard, span.offset, span.offset + span.size)
        if len(data) != span.size or hashlib.sha256(data).hexdigest() != span.sha256:
            raise UserError(
                f"{self._where(sample)}: the bytes of sample {sample.sample_id} do not match the index, so the shard "
                "was truncated or changed; restore it or convert the dataset again."
            )
        return data
