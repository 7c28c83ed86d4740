"""Local files that a conversion needs for a while, named so that the next one can remove what a killed one left."""

import hashlib
import os
import tempfile
from pathlib import Path

from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.scratch import open_scratch, remove_abandoned

_SUFFIX = ".fmad.tar"


def check_writable(store: Store) -> None:
    """Raises:
    UserError: the local folder of `store` could not be created or written. Object stores are not asked.
    """
    if not store.is_local:
        return
    folder = Path(store.path())
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: a file where the output folder should be; choose another --out.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write here; change its permissions or choose another --out.")


def stage_file(store: Store) -> tuple[int, Path]:
    """An empty locked scratch file: inside the folder of a local store, else in the system's temporary folder.

    Its descriptor comes first; the file counts as in use while that is open.
    """
    folder = Path(store.path()) if store.is_local else None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return open_scratch(folder, _SUFFIX)
    except OSError as error:
        raise UserError(f"{folder or tempfile.gettempdir()}: cannot be written ({first_line(error)}).") from None


def remove_leftovers(store: Store) -> int:
    """Remove scratch files of killed conversions, never those of running ones; returns how many there were."""
    if store.is_local and not store.exists():
        return 0
    folder = Path(store.path()) if store.is_local else Path(tempfile.gettempdir())
    found = folder.rglob(f"{TEMPORARY_PREFIX}*") if store.is_local else folder.glob(f"{TEMPORARY_PREFIX}*{_SUFFIX}")
    return remove_abandoned(found)


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
