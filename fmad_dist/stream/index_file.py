"""The offset index in memory, or, where it is large, as an Arrow file that the processes of a machine share.

A parquet index of ten million images takes 4 GB as a table, in every process and in every reader process of each. Above
IN_MEMORY_BYTES it is written once, uncompressed, below the system's temporary folder (TMPDIR), named by the index's
digest, and mapped from there: its pages belong to the kernel, which shares them and takes them back at need.
"""

import hashlib
import io
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.storage.scratch import folder_lock, open_scratch, published
from fmad_dist.stream.manifest import MANIFEST_NAME, IndexInfo

IN_MEMORY_BYTES = 8 << 20  # of parquet, about 100,000 images
BLOCK_BYTES = 64 << 20  # of parquet that are copied at a time
BATCH_ROWS = 1 << 16  # of a part of the table
UNUSED_S = 7 * 24 * 3600.0  # files that nobody has opened for so long go when another is made


def read_index(store: Store, info: IndexInfo, schema: pa.Schema) -> tuple[pa.Table, bool]:
    """The rows of an index, and whether they are mapped from a file.

    Raises:
        UserError: the index is missing or was changed after it was written, or the file cannot be written.
    """
    if info.num_bytes <= IN_MEMORY_BYTES:
        data = store.read(info.name)
        _check(store, info, len(data), hashlib.sha256(data).hexdigest())
        return pq.read_table(io.BytesIO(data), schema=schema).combine_chunks(), False
    _check(store, info, store.size(info.name), info.sha256)
    path = _folder() / f"{info.sha256}.arrow"
    try:
        with folder_lock(path.parent):
            if not path.exists():
                _remove_unused(path.parent)
                _write(store, info, path)
            os.utime(path)
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all(), True
    except OSError as error:
        raise UserError(f"{path.parent}: cannot hold the index ({first_line(error)}); set TMPDIR to a disk.") from None


def _check(store: Store, info: IndexInfo, num_bytes: int, sha256: str) -> None:
    if (num_bytes, sha256) != (info.num_bytes, info.sha256):
        raise UserError(
            f"{store.url_of(info.name)}: {num_bytes} bytes that do not match the digest in {MANIFEST_NAME}; "
            "the index was truncated or changed, convert the dataset again."
        )


def _folder() -> Path:
    """The folder of this user; one that somebody else made could hold anything."""
    folder = Path(tempfile.gettempdir()) / f"fmad-index-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder}: belongs to somebody else, or others may write to it; remove it or set TMPDIR.")
    return folder


def _write(store: Store, info: IndexInfo, path: Path) -> None:
    """Copy the verified parquet beside `path` and write it there as Arrow, a batch of rows at a time."""
    handle, copy = open_scratch(path.parent)
    digest = hashlib.sha256()
    try:
        with open(handle, "wb") as file:
            for start in range(0, info.num_bytes, BLOCK_BYTES):
                data = store.read_range(info.name, start, min(start + BLOCK_BYTES, info.num_bytes))
                digest.update(data)
                file.write(data)
            file.flush()
            _check(store, info, file.tell(), digest.hexdigest())
            with (
                published(path) as scratch,
                pq.ParquetFile(copy, pre_buffer=False) as parquet,
                pa.ipc.new_file(str(scratch), parquet.schema_arrow) as writer,
            ):
                for group in range(parquet.num_row_groups):
                    writer.write_table(parquet.read_row_group(group, use_threads=False), BATCH_ROWS)
    finally:
        copy.unlink(missing_ok=True)


def _remove_unused(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > UNUSED_S:
                path.unlink()  # whoever has it mapped keeps it
