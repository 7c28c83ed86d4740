"""Tar shards: written by webdataset, rolled at a size, named by their content, and read back for byte ranges."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.members import XYZ_EXTENSION, index_row, mask_extensions, member_spans, sample_members
from data_tools.readers.source import SourceImage
from data_tools.rendition import Rendered
from data_tools.staging import sha256_of_file, stage_file
from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import ShardInfo

SHARD_FOLDER = "shards"
_MEMBER_OVERHEAD = 1024  # tar header and padding, for deciding when a shard is full


class ShardWriter:
    """Writes the samples of one split, in order, into shards of about `target_bytes`.

    Each shard is staged in a local file that the next conversion can recognise and remove, then uploaded under its
    content-named final name, and appended to the dataset's `shards` and its samples to the index `rows`.
    """

    def __init__(
        self,
        store: Store,
        dataset: str,
        split: str,
        target_bytes: int,
        shards: list[ShardInfo],
        rows: list[dict[str, object]],
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.split = split
        self.target_bytes = target_bytes
        self.shards = shards
        self.rows = rows
        self._staged: Path | None = None
        self._stream: Any = None
        self._tar: Any = None
        self._num_bytes = 0
        self._pending: list[tuple[dict[str, object], int]] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish_shard()
        finally:
            self._discard()

    def write(self, record: SourceImage, rendered: Rendered) -> None:
        """Append one sample, starting a new shard when this one would get too large."""
        members = sample_members(self.dataset, record, rendered)
        num_bytes = sum(len(data) + _MEMBER_OVERHEAD for data in members.values())
        if self._tar is not None and self._num_bytes + num_bytes > self.target_bytes:
            self._finish_shard()
        if self._tar is None:
            self._start_shard()
        with self._explained():
            self._tar.write({"__key__": record.key, **members})
        self._num_bytes += num_bytes
        self._pending.append((index_row(record, rendered), len(rendered.masks)))

    def _start_shard(self) -> None:
        from webdataset import TarWriter

        self._staged = stage_file(self.store)
        self._stream = open(self._staged, "wb")  # noqa: SIM115 (closed by _discard)
        self._tar = TarWriter(
            self._stream, encoder=False, user="fmad", group="fmad", mode=0o644, mtime=0, format="PAX_FORMAT"
        )
        self._num_bytes = 0

    def _finish_shard(self) -> None:
        if self._tar is None or self._staged is None:
            return
        with self._explained():
            self._tar.close()
            self._stream.close()
        sha256 = sha256_of_file(self._staged)
        number = sum(shard.split == self.split for shard in self.shards)
        shard = ShardInfo(
            name=f"{SHARD_FOLDER}/{self.split}-{number:06d}-{sha256[:16]}.tar",
            split=self.split,
            num_bytes=self._staged.stat().st_size,
            num_samples=len(self._pending),
            sha256=sha256,
        )
        self._locate_members(len(self.shards))
        self.store.upload(self._staged, shard.name)
        self.shards.append(shard)
        self._discard()

    def _locate_members(self, position: int) -> None:
        """Complete the pending rows with the byte ranges that the finished tar really has."""
        assert self._staged is not None
        with open(self._staged, "rb") as stream:
            spans = member_spans(stream)
        for row, num_masks in self._pending:
            image = spans[f"{row['key']}.png"]
            masks = [spans[f"{row['key']}.{extension}"] for extension in mask_extensions(num_masks)]
            row.update(shard=position, image_offset=image.offset, image_size=image.size, image_sha256=image.sha256)
            row.update(mask_offset=[mask.offset for mask in masks], mask_size=[mask.size for mask in masks])
            row.update(mask_sha256=[mask.sha256 for mask in masks])
            xyz = spans.get(f"{row['key']}.{XYZ_EXTENSION}")
            if xyz is not None:
                row.update(xyz_offset=xyz.offset, xyz_size=xyz.size, xyz_sha256=xyz.sha256)
            self.rows.append(row)

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
        self._staged, self._stream, self._tar, self._pending = None, None, None, []
