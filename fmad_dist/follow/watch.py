"""What is new in a training that goes on elsewhere. Only the main process looks.

The training owns its checkpoints and deletes old ones at any moment, so nothing here expects one to be there: what can
be read completely is read into memory, the rest is said and passed over.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.storage import Store
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints, Damaged
from fmad_dist.training.checkpoint_reader import read_averages
from fmad_dist.training.export import checkpoints_of


@dataclass(frozen=True)
class Arrival:
    """A checkpoint that was not evaluated yet, and its averaged weights."""

    checkpoint: Checkpoint
    averages: dict[str, Tensor]


@dataclass(frozen=True)
class Ended:
    """Why there is nothing more to wait for."""

    reason: str


class Watch:
    """The checkpoints of a run directory, or of a folder or URL that holds them. `is_known` says which were evaluated
    before."""

    def __init__(self, run: str, is_known: Callable[[Checkpoint], bool], once: bool, patience_s: float) -> None:
        self.run = Store(run)
        self.is_known = is_known
        self.once = once
        self.patience_s = patience_s
        self.checkpoints: Checkpoints | None = None
        self.config: RunConfig | None = None  # of the run directory, or of the newest checkpoint that was seen
        self._settled: dict[int, datetime] = {}  # steps that need nothing more, by when they were written
        self._written: dict[int, datetime] = {}
        self._last_news = time.monotonic()
        self._said: set[str] = set()

    def look(self) -> Arrival | Ended | None:
        """The oldest checkpoint that is new, or why there will be none; None for now.

        Raises:
            UserError: `once`, and the run or its storage cannot be read.
        """
        try:
            arrival = self._next()
        except UserError as error:
            if self.once:
                raise
            self._say(f"{error} Waiting for it.")
            arrival = None
        if arrival is not None:
            self._last_news = time.monotonic()
            return arrival
        return self._end()

    def settle(self, step: int) -> None:
        """The checkpoint that `look` gave was evaluated."""
        self._settled[step] = self._written[step]
        self._last_news = time.monotonic()

    def is_kept(self, step: int) -> bool:
        """Whether the run still has this checkpoint; False while its storage is away."""
        try:
            return self.checkpoints is not None and step in self.checkpoints.steps()
        except UserError:
            return False

    def _next(self) -> Arrival | None:
        if self.run.is_local and not self.run.exists():
            raise UserError(f"{self.run.url}: there is no such run yet.")
        self.checkpoints, config = checkpoints_of(self.run.url)
        self.config = config or self.config
        for step, written in self.checkpoints.published().items():
            if self._settled.get(step) == written:
                continue
            arrival = self._read(self.checkpoints, step, written)
            if arrival is not None:
                return arrival
        return None

    def _read(self, checkpoints: Checkpoints, step: int, written: datetime) -> Arrival | None:
        try:
            checkpoint = checkpoints.read(step)
            if self.is_known(checkpoint):
                self._settled[step] = written
                return None
            arrival = Arrival(checkpoint, read_averages(checkpoint))
        except UserError as error:
            if step not in checkpoints.steps():
                self._say(f"step {step}: the training removed this checkpoint before it was read; it is left out.")
                return None
            if isinstance(error, Damaged):
                self._say(f"step {step}: {error} It is left out.")
                self._settled[step] = written
                return None
            raise
        self._written[step] = written
        return arrival

    def _end(self) -> Ended | None:
        if self._is_complete():
            return Ended("the training is complete")
        if self.once:
            return Ended("all checkpoints that are there were evaluated")
        waited = time.monotonic() - self._last_news
        return Ended(f"no new checkpoint for {waited:.0f} s") if waited >= self.patience_s else None

    def _is_complete(self) -> bool:
        """Its last checkpoint needs nothing more, and a run directory holds the detector of that."""
        if self.config is None or self.config.train.steps not in self._settled:
            return False
        has_folder = self.run.is_local and self.run.exists("config.yaml")
        return not has_folder or what_lacks(Path(self.run.path()), self.config) is None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr, flush=True)
