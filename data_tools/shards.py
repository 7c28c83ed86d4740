"""Tar shards in WebDataset's form: rolled at a size, named by their content, and read back for byte ranges.

Written with the standard library, because importing webdataset imports torch, which a conversion does not need.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.members import index_row, member_spans, place_members, sample_members
from data_tools.readers.source import SourceImage
from data_tools.records import ROW_SCHEMA, ShardRecord
from data_tools.rendition import Rendered
from data_tools.staging import sha256_of_file, stage_file
from data_tools.uploader import Uploader
from fmad_dist.errors import UserError, first_line
from fmad_dist.stream.manifest import ShardInfo

SHARD_FOLDER = "shards"
_MEMBER_OVERHEAD = 1024  # tar header and padding, for deciding when a shard is full


class ShardWriter:
    """Writes the samples of one split, in order, into shards of about `target_bytes`.

    Each shard is staged in a local file that the next conversion can recognise and remove, and handed to the uploader
    under its content-named final name.
    """

    def __init__(
        self, uploader: Uploader, dataset: str, prefix: str, split: str, number: int, target_bytes: int
    ) -> None:
        self.uploader = uploader
        self.dataset = dataset
        self.prefix = prefix  # of shard names: the split, and the part if there are several
        self.split = split
        self.number = number  # of the next shard of this split
        self.target_bytes = target_bytes
        self._staged: Path | None = None
        self._lock = -1  # descriptor that marks the staged file as ours while it is open
        self._stream: Any = None
        self._tar: tarfile.TarFile | None = None
        self._num_bytes = 0
        self._num_pooled = 0
        self._rows: list[dict[str, object]] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish_shard()
        finally:
            self._discard()

    def write(self, record: SourceImage, rendered: Rendered, source_line: str) -> None:
        """Append one sample, starting a new shard when this one would get too large."""
        members = sample_members(self.dataset, record, rendered)
        num_bytes = sum(len(data) + _MEMBER_OVERHEAD for data in members.values())
        if self._tar is not None and self._num_bytes + num_bytes > self.target_bytes:
            self._finish_shard()
        if self._tar is None:
            self._start_shard()
        assert self._tar is not None
        with self._explained():
            for extension, data in members.items():
                self._tar.addfile(_header(f"{record.key}.{extension}", len(data)), io.BytesIO(data))
        self._num_bytes += num_bytes
        self._num_pooled += rendered.num_pooled
        self._rows.append(index_row(record, rendered, source_line))

    def _start_shard(self) -> None:
        self._lock, self._staged = stage_file(self.uploader.store)
        self._stream = open(self._staged, "wb")  # noqa: SIM115 (closed by _discard)
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._num_bytes, self._num_pooled = 0, 0

    def _finish_shard(self) -> None:
        if self._tar is None or self._staged is None:
            return
        with self._explained():
            self._tar.close()
            self._stream.close()
        sha256 = sha256_of_file(self._staged)
        shard = ShardInfo(
            name=f"{SHARD_FOLDER}/{self.prefix}-{self.number:06d}-{sha256[:16]}.tar",
            split=self.split,
            num_bytes=self._staged.stat().st_size,
            num_samples=len(self._rows),
            sha256=sha256,
        )
        with open(self._staged, "rb") as stream:
            spans = member_spans(stream)
        for row in self._rows:
            place_members(row, spans[str(row["key"])])
        rows = pa.Table.from_pylist(self._rows, schema=ROW_SCHEMA)
        lock, staged, self._lock, self._staged = self._lock, self._staged, -1, None
        self.uploader.put(lock, staged, ShardRecord(shard, rows, self._num_pooled))
        self.number += 1
        self._discard()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._staged}: cannot be written ({first_line(error)}); free some space.") from None

    def _discard(self) -> None:
        """Forget the current shard's staging file, finished or not."""
        if self._tar is not None:
            with suppress(OSError):  # the disk may be full, and the file is thrown away anyway
                self._tar.close()
        if self._stream is not None:
            self._stream.close()
        if self._staged is not None:
            self._staged.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
        self._staged, self._stream, self._tar, self._rows, self._lock = None, None, None, [], -1


def _header(name: str, num_bytes: int) -> tarfile.TarInfo:
    """Nothing in it depends on who writes when."""
    header = tarfile.TarInfo(name)
    header.size = num_bytes
    header.mode = 0o644
    header.uname = header.gname = "fmad"
    return header
