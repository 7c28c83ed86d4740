"""A job whose images are numbers: what it finds is which of them it scored, in order."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.jobs.folder import Identity
from fmad_dist.jobs.job import Job
from fmad_dist.jobs.scoring import in_shards
from fmad_dist.jobs.speed import ProcessSpeed
from fmad_dist.storage import Store

NAME = "found.json"


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@dataclass(frozen=True)
class ToyOptions:
    out: str
    save_s: float = 0.0
    overwrite: bool = False


class ToyJob(Job[list[int], list[int]]):
    """Scores `count` numbers; dies before the batch with number `dies_at` of this rank."""

    title = "toy"

    def __init__(
        self,
        out: str | Path,
        count: int = 20,
        batch: int = 2,
        dies_at: int | None = None,
        refuses: str = "",
        kind: str = "toy",
        **identity: Any,
    ) -> None:
        self.store, self.shards = Store(out), in_shards(list(range(count)), batch)
        inputs = {kind: f"{count} in batches of {batch}", "Weights": "some"}
        self.identity = Identity(
            **{"kind": f"a {kind}", "mark": kind, "key": f"{count}/{batch}", "inputs": inputs} | identity
        )
        self.numbers: list[int] = []
        self.loaded, self.num_batches, self.dies_at, self.refuses = False, 0, dies_at, refuses

    def load(self, world: World) -> None:
        self.loaded = True

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        yield from map(list, batches)

    def score(self, batch: list[int]) -> None:
        if self.num_batches == self.dies_at:
            raise Killed
        self.num_batches += 1
        self.numbers += batch

    def end_shard(self, number: int) -> UserError | None:
        return UserError(self.refuses) if self.refuses else None

    def encoded(self) -> bytes:
        return json.dumps(self.numbers).encode()

    def merge(self, parts: Iterable[bytes]) -> bytes:
        return json.dumps(sorted(number for part in parts for number in json.loads(part))).encode()

    def write(self, parts: Sequence[bytes], speeds: Sequence[ProcessSpeed]) -> Sequence[str]:
        self.store.write(NAME, self.merge(parts))
        return (NAME,)

    def finished(self) -> list[int]:
        return json.loads(self.store.read(NAME))
