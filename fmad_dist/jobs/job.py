"""The skeleton of every job over many images: evaluate, predict, compare.

A job has its images in fixed shards of fixed batches, and `complete` does what is left of it on all ranks:

1. The main rank looks into `--out`. A finished job of the same identity is read: no model is loaded, nothing is scored.
   Another job, or something else, is refused (folder.py).
2. The ranks load what scores. What earlier starts found is merged (partial.py) and its shards are left out.
3. The other shards are dealt to the ranks. A shard is scored by one rank, whole or not at all, and on a CPU by one
   thread; so results have the same bits for every number of ranks and after every kill. Every `save_s` seconds a rank
   keeps all that it found, so a kill loses no more than that.
4. One collective carries what the ranks found to the main rank, which merges it, writes the results and stamps them.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from fmad_dist.base.world import World
from fmad_dist.jobs.folder import Identity, JobFolder
from fmad_dist.jobs.partial import Part, PartialResults
from fmad_dist.jobs.scoring import LONGEST_WAIT, Loaded, Scoring, deal, score_shards
from fmad_dist.jobs.speed import ProcessSpeed

NOTHING_LEFT = "everything was scored before; nothing is left to do"

Results = TypeVar("Results")


class JobOptions(Protocol):
    """What the options of every job say."""

    @property
    def out(self) -> str: ...  # folder or URL of the results
    @property
    def save_s(self) -> float: ...  # seconds between two writes of what a rank found
    @property
    def overwrite(self) -> bool: ...  # another job of this kind in `out` may be replaced


class Job(Scoring[Loaded], Generic[Loaded, Results]):
    """One rank's part of a job, and for the main rank its end. Only `identity` and `shards` are there before `load`."""

    identity: Identity
    needs_shared_out = False  # whether ranks write results of their own, which all nodes must then see

    @abstractmethod
    def load(self, world: World) -> None:
        """Load what scores; every rank calls. The main rank is done before any rank scores."""

    @abstractmethod
    def merge(self, parts: Iterable[bytes]) -> bytes:
        """What several ranks and starts found, in any order; nothing from no parts."""

    @abstractmethod
    def write(self, parts: Sequence[bytes], speeds: Sequence[ProcessSpeed]) -> Sequence[str]:
        """Write the results of all shards; returns the names of the files in `out` that must stay as they are. Only the
        main rank calls. `speeds` are of the processes of this start, in rank order."""

    def facts(self) -> Mapping[str, str]:
        """What a reader of the stamp learns: the inputs of the identity, and more."""
        return self.identity.inputs

    @abstractmethod
    def finished(self) -> Results:
        """Read what `write` wrote, in this start or an earlier one."""


def complete(job: Job[Loaded, Results], options: JobOptions, world: World) -> Results | None:
    """Do what is left of a job. Every rank calls; the main rank returns the results, the others None.

    Raises:
        UserError: `out` is refused, see `JobFolder.begin`, or whatever the job raises.
    """
    world.join(timeout=LONGEST_WAIT)
    folder = JobFolder(options.out, job.identity)
    if world.broadcast(world.is_main and folder.begin(options.overwrite)):
        world.leave()
        if not world.is_main:
            return None
        print(NOTHING_LEFT, flush=True)
        return job.finished()
    if job.needs_shared_out:
        folder.check_shared()
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    job.load(world)
    partial = PartialResults(folder.partial, job.identity.partial_key, world.rank, options.save_s)
    earlier = partial.collect(job.merge) if world.is_main else Part(frozenset(), b"")
    done = world.broadcast(earlier.shards)
    if done and world.is_main:
        num_done = sum(len(batch) for number in done for batch in job.shards[number])
        print(f"{num_done} images were scored before; going on with the others", flush=True)
    own = score_shards(job, deal(len(job.shards), done, world.rank, world.size), world, partial)
    gathered = world.gather_to_main((own, job.watch.stop()))
    world.leave()
    if gathered is None:
        return None
    parts = [earlier, *(part for part, _ in gathered)]
    assert sorted(number for part in parts for number in part.shards) == list(range(len(job.shards)))
    names = job.write([part.data for part in parts], [speed for _, speed in gathered])
    folder.finish(names, job.facts())
    return job.finished()
