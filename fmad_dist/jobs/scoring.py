"""What every job over many images does alike: images are dealt in fixed shards, and a rank scores its own one by one.

A shard is scored by one rank, whole or not at all, so what comes out does not depend on how many processes there are.
On a CPU processes compute with one thread (`complete` and `follow` see to it), so an image has the same scores whoever
scores it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.jobs.partial import Part, PartialResults
from fmad_dist.jobs.speed import Stopwatch

T = TypeVar("T")
Shards = list[list[Sequence[T]]]  # images in batches, in shards

MAX_SHARDS = 1024  # enough for every rank to have some, and a short list of what is done
LONGEST_WAIT = timedelta(days=7)  # of a quick rank for a slow one; the launcher ends the ranks that wait for a dead one
Loaded = TypeVar("Loaded")


def in_shards(items: Sequence[T], batch: int) -> Shards[T]:
    """The items in order, in batches of `batch`, in at most MAX_SHARDS shards of equally many batches; the last of each
    may be smaller. A function of the number of items alone."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    size = max(1, -(-len(batches) // MAX_SHARDS))
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def deal(num_shards: int, done: frozenset[int], rank: int, size: int) -> list[int]:
    """The numbers of the shards, of those that are not `done`, that rank `rank` of `size` scores."""
    left = [number for number in range(num_shards) if number not in done]
    return left[rank::size]


class Scoring(ABC, Generic[Loaded]):
    """How one rank reads and scores images of `shards`, and what it found so far."""

    title: str  # of the progress
    shards: Shards[Any]
    watch: Stopwatch  # of this start

    @abstractmethod
    def read(self, batches: Sequence[Sequence[Any]]) -> Iterator[Loaded]:
        """The images of these batches, batch by batch."""

    @abstractmethod
    def score(self, batch: Loaded) -> None:
        """Add a batch to what was found."""

    def end_shard(self, number: int) -> UserError | None:
        """A shard was scored whole; returns why the job must end, if it must. What was found is kept before it does."""
        return None

    def flush(self) -> None:
        """Wait until everything that is written beside the results is stored."""

    @abstractmethod
    def encoded(self) -> bytes:
        """What was found in whole shards since the start."""


def score_shards(
    scoring: Scoring[Loaded], numbers: Sequence[int], world: World, partial: PartialResults | None = None
) -> Part:
    """Score the shards of these numbers, with a progress bar; returns what was found, which `partial` keeps meanwhile.

    Raises:
        UserError: whatever the scoring raises.
    """
    batches = [batch for number in numbers for batch in scoring.shards[number]]
    done, scoring.watch = list[int](), Stopwatch(world.device)
    loaded = scoring.watch.reading(scoring.read(batches))
    with Progress(world.own(scoring.title), sum(map(len, batches)), shown=world.is_main) as progress:
        for number in numbers:
            for images in scoring.shards[number]:
                scoring.score(next(loaded))
                scoring.watch.num_images += len(images)
                progress.advance(len(images))
            done.append(number)
            with scoring.watch.phase("save"):
                refusal = scoring.end_shard(number)
                if partial is not None and (partial.is_due or refusal is not None):
                    _keep(scoring, done, partial)
            if refusal is not None:
                raise refusal
    with scoring.watch.phase("save"):
        return _keep(scoring, done, partial)


def _keep(scoring: Scoring[Loaded], done: Sequence[int], partial: PartialResults | None) -> Part:
    scoring.flush()
    part = Part(frozenset(done), scoring.encoded())
    if partial is not None and done:
        partial.save(part)
    return part
