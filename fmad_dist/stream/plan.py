"""Which sample is read when: a pure function of (content, seed, epoch), independent of processes and workers.

The training stream is one endless sequence of positions 0, 1, 2, ... Position p belongs to epoch p // epoch_size.
An optimizer step takes `global_batch` consecutive positions, so a step may straddle two epochs and no remainder is
ever dropped or repeated. What a rank reads follows from the step number alone; the state to resume is the position.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fmad_dist.base.errors import UserError

_RULE = "rounds/2"  # names the rule below in the plan's digest; raise it when another order comes out


def by_class(rows: np.ndarray, classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The rows of each class, int64 [n_c], in their order; `classes` int64 [n] of the rows are in [0, num_classes)."""
    order = np.argsort(classes, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(classes, minlength=num_classes))[:-1])


@dataclass(frozen=True)
class StreamPlan:
    """The order of a training stream over `rows`.

    Class c appears `quotas[c]` times in every epoch. Its appearances go on from epoch to epoch in rounds: appearance k
    of the class, counted over the whole stream, is number k mod n of a permutation of its n samples that is seeded by
    the round k div n. So after any number of epochs all samples of a class have appeared equally often, within one.
    Inside an epoch all chosen samples are shuffled together.
    """

    rows: np.ndarray  # what the plan orders, int64 [n]
    classes: np.ndarray  # class number of each, int64 [n]
    content: str  # digest of what the rows are
    seed: int = 0
    quotas: np.ndarray | None = None  # appearances per epoch of each class, int64 [K]; None: every sample once
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reader processes get the epochs that were shuffled already, and not what follows from the rows."""
        return StreamPlan, (self.rows, self.classes, self.content, self.seed, self.quotas, dict(self._cache))

    @cached_property
    def appearances(self) -> np.ndarray:
        """Per epoch, of each class, int64 [K]; 0 for class numbers without samples."""
        counts = np.bincount(self.classes)
        return counts if self.quotas is None else np.where(counts > 0, self.quotas, 0).astype(np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 that names this plan: equal digests read equal sequences."""
        rule = f"{_RULE}|{self.content}|{self.seed}|{self.appearances.tolist()}|".encode()
        found = hashlib.sha256(rule)
        for members in (self.rows, self.classes):
            found.update(np.ascontiguousarray(members, dtype="<i8").data)
        return found.hexdigest()

    @property
    def epoch_size(self) -> int:
        return int(self.appearances.sum())

    def epoch(self, number: int) -> np.ndarray:
        """The order of epoch `number`: int64 [epoch_size] of `rows`."""
        if number not in self._cache:
            if len(self._cache) > 1:
                self._cache.pop(min(self._cache))
            self._cache[number] = self._shuffled(number)
        return self._cache[number]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows at stream positions, int64 of the same shape."""
        epochs, offsets = np.divmod(positions, self.epoch_size)
        result = np.empty_like(offsets)
        for number in np.unique(epochs):
            chosen = epochs == number
            result[chosen] = self.epoch(int(number))[offsets[chosen]]
        return result

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The samples of each class, int64 [n_c], in the order of `rows`."""
        return by_class(self.rows, self.classes, len(self.appearances))

    def _shuffled(self, number: int) -> np.ndarray:
        chosen = [
            self._appearing(class_number, members, number * int(quota), (number + 1) * int(quota))
            for class_number, (members, quota) in enumerate(zip(self._members, self.appearances, strict=True))
            if quota
        ]
        order = np.concatenate(chosen)
        self._generator("epoch", number).shuffle(order)
        return order

    def _appearing(self, class_number: int, members: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Appearances [start, stop) of a class, counted over the whole stream."""
        count = len(members)
        first, last = -(-start // count), stop // count  # rounds [first, last) are whole
        if first > last:
            return self._round(class_number, members, last)[start - last * count : stop - last * count]
        head = self._round(class_number, members, first - 1)[start % count :] if start % count else members[:0]
        tail = self._round(class_number, members, last)[: stop % count] if stop % count else members[:0]
        whole = np.tile(members, last - first)  # not permuted: the epoch shuffles their order away
        return np.concatenate([head, whole, tail])

    def _round(self, class_number: int, members: np.ndarray, number: int) -> np.ndarray:
        return self._generator("class", class_number, number).permutation(members)

    def _generator(self, *key: object) -> np.random.Generator:
        text = "|".join(map(str, (self.content, self.seed, *key)))
        return np.random.Generator(np.random.Philox(key=int(hashlib.sha256(text.encode()).hexdigest()[:32], 16)))


@dataclass(frozen=True)
class BatchLayout:
    """How the positions of one optimizer step are dealt to ranks and accumulation rounds."""

    global_batch: int
    micro_batch: int
    world_size: int

    @classmethod
    def fit(cls, global_batch: int, micro_batch: int | None, world_size: int) -> "BatchLayout":
        """Derive the micro batch when it is None.

        Raises:
            UserError: the global batch cannot be dealt evenly.
        """
        if global_batch % world_size:
            raise UserError(f"train.global_batch {global_batch} is not a multiple of the {world_size} processes.")
        per_rank = global_batch // world_size
        micro = per_rank if micro_batch is None else micro_batch
        if per_rank % micro:
            raise UserError(
                f"train.global_batch {global_batch} over {world_size} processes is {per_rank} samples each, "
                f"which is not a multiple of train.micro_batch {micro}."
            )
        return cls(global_batch, micro, world_size)

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.micro_batch * self.world_size)

    def positions(self, start: int, rank: int) -> np.ndarray:
        """Stream positions int64 [accumulation, micro_batch] that `rank` reads in the step that begins at `start`."""
        rounds = start + np.arange(self.global_batch).reshape(self.accumulation, self.world_size, -1)
        return rounds[:, rank, :]

    def rank_of(self, positions: np.ndarray) -> np.ndarray:
        """The rank that reads each stream position in a stream of such steps alone, int64 of the same shape."""
        return positions % self.global_batch // self.micro_batch % self.world_size

    def batches(self, rank: int, starts: Iterable[int]) -> Iterator[np.ndarray]:
        """Positions [micro_batch] of every forward pass of `rank` in the steps that begin at these positions."""
        for start in starts:
            yield from self.positions(start, rank)
