"""What every rank will read in an epoch: images, shards, bytes, and what a cache must hold."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.stream.reader import BLOCK_BYTES
from fmad_dist.stream.training_stream import TrainingStream

_BLOCK_BITS = 24  # a key is the shard's number and, in the lowest bits, the block's
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1


@dataclass(frozen=True)
class ImageLocations:
    """Where the bytes of every row lie."""

    shard: np.ndarray  # int64 [N], counted through all shards of all datasets
    offset: np.ndarray  # int64 [N], in the shard
    num_bytes: np.ndarray  # int64 [N]
    shard_bytes: np.ndarray  # int64, of every shard

    @classmethod
    def of(cls, mixture: Mixture) -> "ImageLocations":
        """Of the resized renditions, or of the originals where those alone are stored."""
        parts: list[np.ndarray] = []
        totals: list[int] = []
        for dataset in mixture.datasets:
            name = "original" if dataset.manifest.rendition.size is None else "image"
            columns = [dataset.table.column(column) for column in ("shard", f"{name}_offset", f"{name}_size")]
            parts.append(np.stack([column.to_numpy().astype(np.int64) for column in columns]))
            parts[-1][0] += len(totals)
            totals += [shard.num_bytes for shard in dataset.manifest.shards]
        shard, offset, num_bytes = np.concatenate(parts, axis=1)
        return cls(shard, offset, num_bytes, np.array(totals))

    def cache_bytes(self, rows: np.ndarray) -> int:
        """What a cache must hold to keep these images: whole blocks, the last of a shard being shorter."""
        keys = self.blocks(rows)
        starts = (keys & _BLOCK_MASK) * BLOCK_BYTES
        return int(np.minimum(self.shard_bytes[keys >> _BLOCK_BITS] - starts, BLOCK_BYTES).sum())

    def blocks(self, rows: np.ndarray) -> np.ndarray:
        """Keys, int64, distinct, ascending, of the cache blocks that hold these images."""
        if len(rows) == 0:
            return np.zeros(0, dtype=np.int64)
        first = self.offset[rows] // BLOCK_BYTES
        last = (self.offset[rows] + self.num_bytes[rows] - 1) // BLOCK_BYTES
        keys = [
            (self.shard[rows] << _BLOCK_BITS) + np.minimum(first + step, last)
            for step in range(int((last - first).max()) + 1)
        ]
        return np.unique(np.concatenate(keys))


@dataclass(frozen=True)
class EpochReads:
    """What is read in epoch `epoch` of a stream by `nodes` x `gpus` ranks."""

    stream: TrainingStream
    layout: BatchLayout
    nodes: int
    gpus: int
    epoch: int

    @cached_property
    def order(self) -> np.ndarray:
        """Rows in reading order, int64 [epoch size]."""
        return self.stream.plan.epoch(self.epoch)

    @cached_property
    def ranks(self) -> np.ndarray:
        """Which rank reads each of them, int64 [epoch size]."""
        positions = self.epoch * self.stream.plan.epoch_size + np.arange(self.stream.plan.epoch_size)
        return self.layout.rank_of(positions)

    @cached_property
    def locations(self) -> ImageLocations:
        return ImageLocations.of(self.stream.mixture)

    @property
    def steps(self) -> float:
        """Optimizer steps per epoch."""
        return self.stream.plan.epoch_size / self.layout.global_batch

    @cached_property
    def samples_per_rank(self) -> np.ndarray:
        return np.bincount(self.ranks, minlength=self.layout.world_size)

    @cached_property
    def bytes_per_rank(self) -> np.ndarray:
        """Bytes of images, int64 [world]; an image that is read twice counts twice."""
        weights = self.locations.num_bytes[self.order]
        return np.bincount(self.ranks, weights=weights, minlength=self.layout.world_size).astype(np.int64)

    @cached_property
    def shards_per_rank(self) -> np.ndarray:
        """Distinct shards, int64 [world]."""
        return self._distinct(self.ranks, self.locations.shard[self.order], self.layout.world_size)

    @cached_property
    def shards_per_node(self) -> np.ndarray:
        return self._distinct(self.ranks // self.gpus, self.locations.shard[self.order], self.nodes)

    @cached_property
    def images_per_node(self) -> np.ndarray:
        """Distinct images, int64 [nodes]."""
        return self._distinct(self.ranks // self.gpus, self.order, self.nodes)

    @cached_property
    def cache_bytes_per_node(self) -> np.ndarray:
        """What the cache of a node must hold to keep everything that the node reads in this epoch, int64 [nodes]."""
        node_of = self.ranks // self.gpus
        return np.array([self.locations.cache_bytes(self.order[node_of == node]) for node in range(self.nodes)])

    @property
    def cache_bytes_of_all_epochs(self) -> int:
        """The same over many epochs, in which every node meets every image."""
        return self.locations.cache_bytes(self.stream.plan.rows)

    def first_samples(self, rank: int, count: int = 2) -> list[str]:
        own = self.order[np.flatnonzero(self.ranks == rank)[:count]]
        return [self.stream.mixture.sample_id(int(row)) for row in own]

    @staticmethod
    def _distinct(groups: np.ndarray, members: np.ndarray, num_groups: int) -> np.ndarray:
        """Number of distinct members of each group, int64 [num_groups]."""
        stride = int(members.max()) + 1
        pairs = np.unique(groups * stride + members)
        return np.bincount(pairs // stride, minlength=num_groups)


def epoch_reads(
    stream: TrainingStream, *, nodes: int, gpus: int, global_batch: int, micro_batch: int | None = None, epoch: int = 0
) -> EpochReads:
    """Work out what an epoch reads, in one process and without reading an image.

    Raises:
        UserError: a number is not positive, or the batch cannot be dealt evenly.
    """
    for name, value in (("--nodes", nodes), ("--gpus", gpus), ("--batch", global_batch)):
        if value < 1:
            raise UserError(f"{name} {value}: give a positive number.")
    if epoch < 0:
        raise UserError(f"--epoch {epoch}: epochs count from 0.")
    return EpochReads(stream, BatchLayout.fit(global_batch, micro_batch, nodes * gpus), nodes, gpus, epoch)
