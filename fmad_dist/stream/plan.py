"""Which sample is read when: a pure function of (content, seed, epoch), independent of processes and workers.

The training stream is one endless sequence of positions 0, 1, 2, ... Position p belongs to epoch p // epoch_size.
An optimizer step takes `global_batch` consecutive positions, so a step may straddle two epochs and no remainder is
ever dropped or repeated. What a rank reads follows from the step number alone; the state to resume is the position.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fmad_dist.errors import UserError


@dataclass(frozen=True)
class StreamPlan:
    """The order of a training stream over `indices`.

    Per epoch a class of n samples appears quota = round(n_max * (n / n_max) ** (1 / temperature)) times: every sample
    at least once, and at temperature 1 exactly once. The floor(quota / n) full rounds are topped up with a seeded
    choice of quota % n samples that changes every epoch.
    """

    indices: np.ndarray  # what the plan orders, int64 [n]
    classes: np.ndarray  # class number of each, int64 [n]
    content: str  # digest of what the indices point at
    seed: int = 0
    temperature: float = 1.0
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 that names this plan: equal digests read equal sequences."""
        rule = f"{self.content}|{self.seed}|{self.temperature!r}|".encode()
        members = self.indices.astype("<i8").tobytes() + self.classes.astype("<i8").tobytes()
        return hashlib.sha256(rule + members).hexdigest()

    @property
    def quotas(self) -> np.ndarray:
        """Appearances per epoch of each class, int64 [K]."""
        counts = np.bincount(self.classes)
        share = counts / counts.max()
        return np.round(counts.max() * share ** (1.0 / self.temperature)).astype("<i8")

    @property
    def epoch_size(self) -> int:
        return int(self.quotas.sum())

    def epoch(self, number: int) -> np.ndarray:
        """The order of epoch `number`: int64 [epoch_size] of entries of `indices`."""
        if number not in self._cache:
            if len(self._cache) > 1:
                self._cache.pop(min(self._cache))
            self._cache[number] = self._shuffled(number)
        return self._cache[number]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Entries of `indices` at stream positions, int64 of the same shape."""
        epochs, offsets = np.divmod(positions, self.epoch_size)
        result = np.empty_like(offsets)
        for number in np.unique(epochs):
            chosen = epochs == number
            result[chosen] = self.epoch(int(number))[offsets[chosen]]
        return result

    def _shuffled(self, number: int) -> np.ndarray:
        key = int.from_bytes(hashlib.sha256(f"{self.content}|{self.seed}|{number}".encode()).digest()[:16], "big")
        generator = np.random.Generator(np.random.Philox(key=key))
        chosen: list[np.ndarray] = []
        for label, quota in enumerate(self.quotas):
            members = self.indices[self.classes == label]
            if len(members) == 0:
                continue
            rounds, extra = divmod(int(quota), len(members))
            chosen += [members] * rounds
            chosen.append(generator.permutation(members)[:extra])
        return generator.permutation(np.concatenate(chosen))


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

    def positions(self, step: int, rank: int) -> np.ndarray:
        """Stream positions int64 [accumulation, micro_batch] that `rank` reads in optimizer step `step`."""
        rounds = step * self.global_batch + np.arange(self.global_batch).reshape(self.accumulation, self.world_size, -1)
        return rounds[:, rank, :]

    def batches(self, rank: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """Positions [micro_batch] of every forward pass of `rank` in steps [start, stop)."""
        for step in range(start, stop):
            yield from self.positions(step, rank)
