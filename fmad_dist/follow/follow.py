"""An evaluator as a job of its own, beside a training or after it: each new checkpoint is scored on held-out normals
with synthetic defects.

It reads checkpoints and held-out normals, never the test split, and writes to its own files of the run. What it found
is in its record, a checkpoint at a time; so a kill loses one checkpoint, and what is in the record is not scored again.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.fit import fit_scorer
from fmad_dist.evaluation.evaluate import merged_state
from fmad_dist.follow.record import BEST_BY, FollowRecord, record_folder, tracked_run
from fmad_dist.follow.scoring import SyntheticScoring
from fmad_dist.follow.synthetic import SyntheticSet, write_sheet
from fmad_dist.follow.watch import Arrival, Ended, Watch
from fmad_dist.jobs.job import NOTHING_LEFT
from fmad_dist.jobs.scoring import LONGEST_WAIT, deal, score_shards
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import Results
from fmad_dist.training.checkpoint import Checkpoint
from fmad_dist.training.checkpoint_reader import broadcast
from fmad_dist.training.export import RunParts
from fmad_dist.training.interruption import Preempted, StopRequest

LABEL = {
    "image_auroc": "synthetic image AUROC",
    "pixel_auroc": "synthetic pixel AUROC",
    "aupro": "synthetic AUPRO",
}


@dataclass(frozen=True)
class FollowOptions:
    """What to follow and for how long."""

    run: str  # run directory, or the folder or URL of its checkpoints
    out: str | None = None  # folder of the record; None = the run directory
    once: bool = False  # evaluate what is there and end
    patience_s: float = 7200.0  # without a new checkpoint
    per_class: int = 16  # held-out normals
    poll_s: float = 10.0


def follow(options: FollowOptions, world: World) -> None:
    """Every rank calls; returns when the training is complete or nothing new comes.

    Raises:
        UserError: there was no checkpoint, or its data cannot be read any more.
        Preempted: it was asked to stop; the same command goes on.
    """
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # scores with the same bits whoever computes them
    world.join(timeout=LONGEST_WAIT)
    try:
        with StopRequest(world) as stop:
            follower = Follower(options, world, stop)
            ended = follower.run()
        if ended is None:
            raise Preempted(f"following {options.run} was asked to stop; the same command goes on.")
        follower.finish(ended)
    finally:
        world.leave()


class Follower:
    """One rank of the job."""

    def __init__(self, options: FollowOptions, world: World, stop: StopRequest) -> None:
        self.options = options
        self.world = world
        self.stop = stop
        self.folder = record_folder(options.run, options.out)
        self.record = FollowRecord(self.folder, options.per_class)
        self.watch = Watch(options.run, self.record.has, options.once, options.patience_s)
        self.num_scored = 0  # checkpoints, since the start
        self._parts: RunParts | None = None
        self._scoring: SyntheticScoring | None = None

    def run(self) -> Ended | None:
        """Until there is nothing more to wait for; None if it was asked to stop."""
        while not self.stop.agreed():
            found = self.watch.look() if self.world.is_main else None
            checkpoint, ended = self.world.broadcast(_task(found))
            if ended is not None:
                return ended
            if checkpoint is None:
                self.stop.wait(self.options.poll_s)
                continue
            averages = broadcast(found.averages if isinstance(found, Arrival) else None, self.world)
            try:
                self._evaluate(checkpoint, averages)
            except Preempted:
                return None
        return None

    def finish(self, ended: Ended) -> None:
        """Say why it ends and which checkpoint was the best.

        Raises:
            UserError: there never was one.
        """
        if not self.world.is_main:
            return
        if not self.record.lines:
            raise UserError(f"{self.options.run}: {ended.reason}, and none was evaluated; check --run.")
        if not self.num_scored:
            print(NOTHING_LEFT, flush=True)
        best = self.record.best()
        if best is None:
            print(f"{ended.reason}; no class has defects that can be seen", flush=True)
            return
        print(f"{ended.reason}; {LABEL[BEST_BY]} was best at step {best['step']}", flush=True)
        if self.watch.is_kept(best["step"]):
            print(f"to deploy it: fmad export --run {self.options.run} --step {best['step']} --out FOLDER", flush=True)
        else:
            print("the training keeps that checkpoint no longer; train.keep_every would", flush=True)

    def _evaluate(self, checkpoint: Checkpoint, averages: dict[str, Tensor]) -> None:
        """Score one checkpoint on all ranks.

        Raises:
            UserError: more held-out images are damaged than the training may have.
            Preempted: it was asked to stop meanwhile.
        """
        start, state = time.monotonic(), checkpoint.state
        config = parse_config(state.config, source=checkpoint.store.url)
        parts, scoring = self._prepared(config)
        detector = parts.detector(checkpoint, averages).move_to(self.world.device)
        detector = fit_scorer(detector, parts.data, self.world)
        scoring.start(detector, f"step {state.step}")
        numbers = deal(len(scoring.shards), frozenset(), self.world.rank, self.world.size)
        own = score_shards(scoring, numbers, self.world)
        gathered = self.world.gather((own.data, list(scoring.bad.values())))
        bad = [one for _, some in gathered for one in some]
        if len(bad) > config.data.max_bad_samples:  # up to that limit they are left out
            raise UserError(f"data.max_bad_samples: {len(bad)} damaged held-out samples; {bad[0]}")
        if self.world.is_main:
            results = compute_results(merged_state((part for part, _ in gathered), scoring.state.protocol))
            self._note(checkpoint, results, config, time.monotonic() - start)

    def _prepared(self, config: RunConfig) -> tuple[RunParts, SyntheticScoring]:
        """Data, features and the images of this rank, made again only when the training changed its configuration."""
        if self._parts is None or self._scoring is None or self._parts.config != config:
            self._parts = RunParts.prepare(config, self.world, self.world.device)
            images = SyntheticSet(self._parts.data, self.options.per_class)
            self._scoring = SyntheticScoring(images, self.world, self.stop)
            if self.world.is_main:
                write_sheet(images, self.folder)
        return self._parts, self._scoring

    def _note(self, checkpoint: Checkpoint, results: Results, config: RunConfig, seconds: float) -> None:
        """Write, show and track the results of a checkpoint."""
        self.num_scored += 1
        line = self.record.add(checkpoint, results, seconds)
        self.watch.settle(checkpoint.state.step)
        shown = ", ".join(f"{title} {_shown(line['mean'][name])}" for name, title in LABEL.items())
        counts = f"{line['num_normals']} normals, {line['num_defects']} defects"
        print(f"step {line['step']}: {shown} ({counts}, {seconds:.1f} s)", flush=True)
        tracked = tracked_run(self.folder, config, checkpoint.state.tracking_run)
        if tracked is not None:
            self.record.copy_to(tracked)


def _task(found: Arrival | Ended | None) -> tuple[Checkpoint | None, Ended | None]:
    """What the main rank tells the others; the weights go separately."""
    if isinstance(found, Arrival):
        return found.checkpoint, None
    return None, found


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
