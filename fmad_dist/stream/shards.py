"""Spans of shards: grouped into few requests, or out of a local cache of whole blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from fmad_dist.storage import Store
from fmad_dist.storage.ranges import ByteRange
from fmad_dist.storage.store import PATIENCE_S
from fmad_dist.stream.blockcache import BlockCache
from fmad_dist.stream.dataset import Dataset, Span

BLOCK_BYTES = 4 << 20  # a request this long costs about as much as its latency, and holds many images
BLOCKS_AT_ONCE = 16  # bounds what one process holds in memory


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read: where read blocks are kept, how large that may grow, how long to wait for the storage."""

    cache: str | None = None
    cache_bytes: int = 100 * 10**9
    patience_s: float = PATIENCE_S


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
        self._fill(list(dict.fromkeys((name, number) for name, span in wanted for number in _blocks(span))))
        return [self._from_blocks(name, span) for name, span in wanted]

    def read_again(self, name: str, span: Span) -> bytes:
        """The same bytes from the storage itself; the blocks that held others are dropped."""
        if self.cache is not None:
            for number in _blocks(span):
                self.cache.drop(self._key(name, number))
        return self.store.read_range(name, span.offset, span.offset + span.size)

    def _fill(self, blocks: list[tuple[str, int]]) -> None:
        """Fetch the blocks that nobody has or is fetching, side by side."""
        assert self.cache is not None
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            ranges = {self._key(*block): self._range(*block) for block in blocks[start : start + BLOCKS_AT_ONCE]}
            self.cache.fill(ranges, self.store.read_ranges)

    def _from_blocks(self, name: str, span: Span) -> bytes:
        first = span.offset // BLOCK_BYTES
        parts = []
        for number in _blocks(span):
            start = span.offset - number * BLOCK_BYTES if number == first else 0
            stop = min(span.offset + span.size - number * BLOCK_BYTES, BLOCK_BYTES)
            parts.append(self._block(name, number, start, stop))
        return b"".join(parts)

    def _block(self, name: str, number: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a block, which is fetched if it is not in the cache."""
        assert self.cache is not None
        whole = self._range(name, number)
        return self.cache.get(self._key(name, number), start, stop, lambda: self.store.read_ranges([whole])[0])

    def _range(self, name: str, number: int) -> ByteRange:
        begin = number * BLOCK_BYTES
        return ByteRange(name, begin, min(begin + BLOCK_BYTES, self.shards[name].num_bytes))

    def _key(self, name: str, number: int) -> str:
        return f"{self.shards[name].sha256}-{number}"


def _blocks(span: Span) -> range:
    return range(span.offset // BLOCK_BYTES, -(-(span.offset + span.size) // BLOCK_BYTES))
