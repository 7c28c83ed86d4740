"""Bytes of samples out of shards, verified against the index and decoded.

Spans of shards are grouped into few requests, or come out of a local cache of whole blocks.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.config.run import ReadOptions
from fmad_dist.images.codec import image_size, open_image, square_rgb
from fmad_dist.images.masks import marked_pixels, raw_mask, resize_mask
from fmad_dist.storage import Store
from fmad_dist.storage.ranges import ByteRange
from fmad_dist.stream.block_cache import BlockCache
from fmad_dist.stream.dataset import Dataset, Span

T = TypeVar("T")
BLOCK_BYTES = 4 << 20  # a request this long costs about as much as its latency, and holds many images
BLOCKS_AT_ONCE = 16  # bounds what one process holds in memory
_RESTORE = "restore the shard or convert the dataset again"


class BadSample(UserError):
    """A stored sample whose bytes are damaged or cannot be decoded: it, and nothing else, is unusable."""

    def __init__(self, sample_id: str, url: str, reason: str, fix: str = _RESTORE) -> None:
        super().__init__(f"{url}: sample {sample_id} {reason}; {fix}.")
        self.sample_id = sample_id
        self.url = url  # of the file that is damaged
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type["BadSample"], tuple[str, str, str, str]]:
        return type(self), (self.sample_id, self.url, self.reason, self.fix)


def unless_bad(found: T | BadSample) -> T:
    """What was read; a damaged sample is raised."""
    if isinstance(found, BadSample):
        raise found
    return found


Fetched = list[tuple[int, bytes | BadSample]]  # per image its index, and its verified bytes or what is wrong


class SampleReader:
    """Reads images of one dataset by byte range, at `size` pixels per side (None: the size of the stored rendition).

    Another size than the stored one is made from the stored original, by the rules of the conversion. Safe to pickle:
    storage is opened lazily in each process.

    Raises:
        UserError: the dataset stores no rendition of this size and no originals.
    """

    def __init__(self, dataset: Dataset, size: int | None = None, options: ReadOptions | None = None) -> None:
        stored = dataset.manifest.rendition
        wanted = size or stored.size
        self.resized = wanted == stored.size
        if wanted is None or not (self.resized or stored.original):
            raise UserError(
                f"{dataset.url}: stores {stored.size or 'no'} px images and not {size or 'one size'}; set "
                "features.image_size to what is stored, or convert the dataset again with --size or --rendition both."
            )
        self.size = wanted
        self.dataset = dataset
        self.shards = ShardReader(dataset, options or ReadOptions())

    def image(self, index: int) -> np.ndarray:
        """One image as uint8 [S, S, 3].

        Raises:
            BadSample: its bytes are damaged.
            UserError: the shard is missing or the storage does not answer.
        """
        return unless_bad(self.images([index])[0])

    def images(self, indices: Sequence[int]) -> "list[np.ndarray | BadSample]":
        """Several images at once, uint8 [S, S, 3] each; damaged ones are returned as what is wrong with them.

        Raises:
            UserError: a shard is missing or the storage does not answer.
        """
        return self.decode(self.fetch(indices))

    def fetch(self, indices: Sequence[int]) -> Fetched:
        """The verified, still encoded images, in few requests."""
        locations = [self.dataset.image_location(index, original=not self.resized) for index in indices]
        return list(zip(indices, self._verified(indices, locations), strict=True))

    def decode(self, fetched: Fetched) -> "list[np.ndarray | BadSample]":
        """The images uint8 [S, S, 3] of what was fetched, or what is wrong with them."""
        return [self._decoded(index, data) for index, data in fetched]

    def masks(self, index: int) -> list[np.ndarray]:
        """The sample's masks as uint8 [S, S] each, zero where normal; empty for a normal image.

        Raises:
            BadSample: a mask is damaged.
        """
        if self.resized:
            return self._raw_masks(index, self.dataset.sample(index).masks)
        return [resize_mask(mask, self.size)[0].astype(np.uint8) * 255 for mask in self.native_masks(index)]

    def native_masks(self, index: int) -> list[np.ndarray]:
        """The sample's masks as published, bool [source height, source width] each; empty for a normal image.

        Raises:
            BadSample: a mask is damaged.
        """
        return [marked_pixels(raw) for raw in self._raw_masks(index, self.dataset.sample(index).original_masks)]

    def _raw_masks(self, index: int, spans: Sequence[Span]) -> list[np.ndarray]:
        sample = self.dataset.sample(index)
        masks = []
        for data in map(unless_bad, self._verified([index] * len(spans), [(sample.shard, span) for span in spans])):
            try:
                masks.append(raw_mask(data, sample.sample_id))
            except UserError as error:
                raise self._bad(index, f"has a mask that is no image ({error})") from None
        return masks

    def xyz(self, index: int) -> np.ndarray | None:
        """The stored point cloud as float32 [H, W, 3] with (0, 0, 0) where a point is missing; None without one."""
        sample = self.dataset.sample(index)
        if sample.xyz is None:
            return None
        data = unless_bad(self._verified([index], [(sample.shard, sample.xyz)])[0])
        return np.load(io.BytesIO(data), allow_pickle=False)

    def _decoded(self, index: int, data: bytes | BadSample) -> np.ndarray | BadSample:
        if isinstance(data, BadSample):
            return data
        try:
            if self.resized:
                return decode_rgb_png(data)
            sample_id = self.dataset.sample_id(index)
            return np.asarray(square_rgb(open_image(data, sample_id), self.size, sample_id))
        except (UserError, RuntimeError) as error:
            return self._bad(index, f"is no readable image ({first_line(error)})")

    def _verified(
        self, indices: Sequence[int], locations: Sequence[tuple[str, Span] | None]
    ) -> list[bytes | BadSample]:
        """The bytes at one location per image. What does not match its digest is read once more past every cache."""
        read = iter(self.shards.read([location for location in locations if location is not None]))
        found: list[bytes | BadSample] = []
        for index, location in zip(indices, locations, strict=True):
            if location is None:
                found.append(self._bad(index, "has no stored image of this kind"))
                continue
            data, span = next(read), location[1]
            if not matches(data, span):
                data = self.shards.read_again(*location)
            found.append(data if matches(data, span) else self._bad(index, _difference(data, span)))
        return found

    def _bad(self, index: int, reason: str) -> BadSample:
        sample = self.dataset.sample(index)
        return BadSample(sample.sample_id, self.shards.store.url_of(sample.shard), reason)


def decode_rgb_png(data: bytes) -> np.ndarray:
    """A stored rendition as uint8 [H, W, 3].

    By libpng through torchvision while it has that: a fifth quicker than Pillow, and the same pixels.

    Raises:
        RuntimeError, UserError: the bytes are no PNG, or have more than FMAD_MAX_PIXELS.
    """
    import torch

    image_size(data, "a stored image")  # not more pixels than a stranger's dataset may have
    try:
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        return np.asarray(open_image(data, "a stored image").convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody writes to the buffer; that torchvision will drop this is known
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        return decode_png(encoded, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def matches(data: bytes, span: Span) -> bool:
    return len(data) == span.size and hashlib.sha256(data).hexdigest() == span.sha256


def _difference(data: bytes, span: Span) -> str:
    if len(data) < span.size:
        return f"has {len(data)} of {span.size} bytes, so the shard was truncated or changed"
    return "does not match its digest in the index, so the shard was truncated or changed"


class ShardReader:
    """Reads spans of one dataset's shards.

    With a cache, blocks of 4 MiB are fetched and kept, keyed by the digest of their shard, unless all shards together
    are larger than the cache: blocks would then be thrown away before their other images are asked for, so spans are
    read on their own. A local dataset needs no cache and has none.
    """

    def __init__(self, dataset: Dataset, options: ReadOptions) -> None:
        self.store = Store(dataset.url, options.patience_s)
        self.shards = {shard.name: shard for shard in dataset.manifest.shards}
        fits = sum(shard.num_bytes for shard in self.shards.values()) <= options.cache_bytes
        wanted = options.cache is not None and fits and not self.store.is_local
        self.cache = BlockCache(options.cache, options.cache_bytes) if wanted and options.cache else None

    def read(self, wanted: Sequence[tuple[str, Span]]) -> list[bytes]:
        """The bytes of each (shard, span), in order; shorter only where a shard ends too early.

        Raises:
            UserError: a shard is missing, or the storage refuses or does not answer.
        """
        if not wanted:
            return []
        if self.cache is None:
            return self.store.read_ranges([ByteRange(name, s.offset, s.offset + s.size) for name, s in wanted])
        blocks = list(dict.fromkeys((name, number) for name, span in wanted for number in _blocks(span)))
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):  # those that nobody has or is fetching, side by side
            ranges = {self._key(*block): self._range(*block) for block in blocks[start : start + BLOCKS_AT_ONCE]}
            self.cache.fill(ranges, self.store.read_ranges)
        return [self._from_blocks(self.cache, name, span) for name, span in wanted]

    def read_again(self, name: str, span: Span) -> bytes:
        """The same bytes from the storage itself; the blocks that held others are dropped."""
        if self.cache is not None:
            for number in _blocks(span):
                self.cache.drop(self._key(name, number))
        return self.store.read_range(name, span.offset, span.offset + span.size)

    def _from_blocks(self, cache: BlockCache, name: str, span: Span) -> bytes:
        """The bytes of a span out of its blocks; one that has left the cache is fetched again."""
        parts = []
        for number in _blocks(span):
            block, begin = self._range(name, number), number * BLOCK_BYTES
            start, stop = max(span.offset - begin, 0), min(span.offset + span.size - begin, BLOCK_BYTES)
            fetch = partial(self.store.read_range, block.name, block.start, block.stop)
            parts.append(cache.get(self._key(name, number), start, stop, fetch))
        return b"".join(parts)

    def _range(self, name: str, number: int) -> ByteRange:
        begin = number * BLOCK_BYTES
        return ByteRange(name, begin, min(begin + BLOCK_BYTES, self.shards[name].num_bytes))

    def _key(self, name: str, number: int) -> str:
        return f"{self.shards[name].sha256}-{number}"


def _blocks(span: Span) -> range:
    return range(span.offset // BLOCK_BYTES, -(-(span.offset + span.size) // BLOCK_BYTES))
