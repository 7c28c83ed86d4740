"""Tar shards in WebDataset's form: staged locally, rolled at a size, named by their content and uploaded meanwhile.

Written with the standard library, because importing webdataset imports torch, which a conversion does not need.
"""

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from data_tools.conversion.records import LINE_COLUMN, ROW_SCHEMA, ShardJournal, ShardRecord, file_columns
from data_tools.conversion.rendition import Rendered
from data_tools.remarks import Remarks
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.scratch import open_scratch, remove_abandoned
from fmad_dist.storage.write_behind import WriteBehind
from fmad_dist.stream.dataset import Span
from fmad_dist.stream.manifest import ShardInfo

SHARD_FOLDER = "shards"
_SUFFIX = ".fmad.tar"  # of staged shards, so that a conversion can remove what a killed one left
_MEMBER_OVERHEAD = 1024  # tar header and padding, for deciding when a shard is full


class StagedFile:
    """An empty scratch file, in the folder of a local store, else in the system's temporary folder.

    It is locked, and so counts as in use, until it is released or the process ends.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, store: Store) -> None:
        folder = Path(store.path()) if store.is_local else None
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._lock, self.path = open_scratch(folder, _SUFFIX)
        except OSError as error:
            raise UserError(f"{folder or tempfile.gettempdir()}: cannot be written ({first_line(error)}).") from None

    def sha256(self) -> str:
        with open(self.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def release(self) -> None:
        """Remove the file and its lock."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)


class ShardUploader:
    """One thread that stores shards in order, verifies them, notes them in the journal and releases the staged file.

    At most one shard is being uploaded while another is being made, so the disk holds two. An error of the thread is
    raised by the next call.
    """

    def __init__(self, store: Store, journal: ShardJournal, done: list[ShardRecord]) -> None:
        self.store = store
        self.journal = journal
        self.done = done  # records in order; grows with every stored shard
        self.num_sent = 0
        self.uploads = WriteBehind(threads=1, max_waiting=1)

    def put(self, staged: StagedFile, record: ShardRecord) -> None:
        """Store a staged shard, which is the uploader's from now on; waits for the one before it."""
        try:
            self.uploads.put(lambda: self._store(staged, record))
        except BaseException:
            staged.release()
            raise

    def _store(self, staged: StagedFile, record: ShardRecord) -> None:
        try:
            self.num_sent += self.store.upload_verified(staged.path, record.shard.name, record.shard.sha256)
        finally:
            staged.release()
        self.journal.add(len(self.done), record)
        self.done.append(record)


@dataclass(kw_only=True)
class ShardWriter:
    """Writes the samples of one split, in order, into shards of about `target_bytes`.

    Each shard is staged in a local file and handed to the uploader under its content-named final name.
    """

    uploader: ShardUploader
    prefix: str  # of shard names: the split, and the part if there are several
    split: str
    number: int  # of the next shard of this split
    target_bytes: int
    _open: "_OpenShard | None" = field(default=None, init=False)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish_shard()
        finally:
            if self._open is not None:
                self._open.discard()

    def write(self, rendered: Rendered, source_line: str) -> None:
        """Append one sample, starting a new shard when this one would get too large."""
        num_bytes = sum(len(data) + _MEMBER_OVERHEAD for data in rendered.files.values())
        if self._open is not None and self._open.num_bytes + num_bytes > self.target_bytes:
            self._finish_shard()
        if self._open is None:
            self._open = _OpenShard(self.uploader.store)
        spans = self._open.add(rendered.row["key"], rendered.files)
        self._open.rows.append(rendered.row | file_columns(spans) | {LINE_COLUMN: source_line})
        self._open.num_bytes += num_bytes
        self._open.remarks.append(rendered.remarks)

    def _finish_shard(self) -> None:
        if self._open is None:
            return
        self._open.close()
        staged, rows = self._open.staged, self._open.rows
        sha256 = staged.sha256()
        shard = ShardInfo(
            name=f"{SHARD_FOLDER}/{self.prefix}-{self.number:06d}-{sha256[:16]}.tar",
            split=self.split,
            num_bytes=staged.path.stat().st_size,
            num_samples=len(rows),
            sha256=sha256,
        )
        record = ShardRecord(shard, pa.Table.from_pylist(rows, schema=ROW_SCHEMA), Remarks.joined(self._open.remarks))
        self._open = None
        self.uploader.put(staged, record)
        self.number += 1


class _OpenShard:
    """A shard that is being written, and the index rows of its samples."""

    def __init__(self, store: Store) -> None:
        self.staged = StagedFile(store)
        self.tar = tarfile.open(self.staged.path, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.rows: list[dict[str, object]] = []
        self.num_bytes = 0
        self.remarks: list[Remarks] = []

    def add(self, key: str, files: dict[str, bytes]) -> dict[str, Span]:
        """Append the files of a sample; returns where their bytes lie, by extension."""
        spans = {}
        with self._explained():
            for extension, data in files.items():
                self.tar.addfile(_header(f"{key}.{extension}", len(data)), io.BytesIO(data))
                start = self.tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # padded to blocks
                spans[extension] = Span.of(start, data)
        return spans

    def close(self) -> None:
        with self._explained():
            self.tar.close()

    def discard(self) -> None:
        with suppress(OSError):  # the disk may be full, and the file is thrown away anyway
            self.tar.close()
        self.staged.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.staged.path}: cannot be written ({first_line(error)}); free some space.") from None


def _header(name: str, num_bytes: int) -> tarfile.TarInfo:
    """A header in which nothing depends on who writes when."""
    header = tarfile.TarInfo(name)
    header.size = num_bytes
    header.mode = 0o644
    header.uname = header.gname = "fmad"
    return header


def check_writable(store: Store) -> None:
    """Refuse a local store whose folder could not be created or written (UserError). Object stores are not asked."""
    if not store.is_local:
        return
    folder = Path(store.path())
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: a file where the output folder should be; choose another --out.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write here; change its permissions or choose another --out.")


def remove_leftovers(store: Store) -> int:
    """Remove scratch files of killed conversions, never those of running ones; returns how many there were."""
    if store.is_local and not store.exists():
        return 0
    folder = Path(store.path()) if store.is_local else Path(tempfile.gettempdir())
    found = folder.rglob(f"{TEMPORARY_PREFIX}*") if store.is_local else folder.glob(f"{TEMPORARY_PREFIX}*{_SUFFIX}")
    return remove_abandoned(found)
