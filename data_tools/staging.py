"""Local files that a conversion needs for a while, named so that the next one can remove what a killed one left."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import TEMPORARY_PREFIX, Store


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


def stage_file(store: Store) -> Path:
    """An empty scratch file: inside the folder of a local store, else in the system's temporary folder."""
    folder = Path(store.path()) if store.is_local else None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=".tar", dir=folder)
    except OSError as error:
        raise UserError(f"{folder or tempfile.gettempdir()}: cannot be written ({first_line(error)}).") from None
    os.close(handle)
    return Path(name)


def remove_leftovers(store: Store) -> int:
    """Remove scratch files of killed conversions to a local store; returns how many there were."""
    if not store.is_local or not store.exists():
        return 0
    leftovers = sorted(Path(store.path()).rglob(f"{TEMPORARY_PREFIX}*"))
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
