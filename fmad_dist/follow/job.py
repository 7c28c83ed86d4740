"""An evaluator as a job of its own, beside a training or after it: each new checkpoint is scored on held-out normals
with synthetic defects.

It reads checkpoints and held-out normals, never the test split, and writes to its own files of the run. All ranks go
through the same rounds, so that a request to stop is met at the same place by all of them.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from fmad_dist.config import RunConfig
from fmad_dist.config_files import parse_config
from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation.results import Results
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.evaluation.synthetic import SyntheticSet
from fmad_dist.follow.record import BEST_BY, FollowRecord, tracked_run
from fmad_dist.follow.share import Share
from fmad_dist.follow.sheet import write_sheet
from fmad_dist.follow.watch import Arrival, Ended, Watch
from fmad_dist.progress import Progress
from fmad_dist.scoring.held_out import fit_scorer
from fmad_dist.training.checkpoint import Checkpoint
from fmad_dist.training.checkpoint_reader import broadcast
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.export import RunParts
from fmad_dist.training.preemption import Preempted, StopRequest
from fmad_dist.world import World

LONGEST_WAIT = timedelta(days=1)  # of ranks for the main one, which may wait for its storage
LABEL = {
    "image_auroc": "synthetic image AUROC",
    "pixel_auroc": "synthetic pixel AUROC",
    "aupro": "synthetic AUPRO",
}


@dataclass(frozen=True)
class FollowOptions:
    """What to follow and for how long."""

    run: str  # run directory, or the folder or URL of its checkpoints
    out: Path  # of the record
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
        self.record = FollowRecord(options.out, options.per_class)
        self.watch = Watch(options.run, self.record.has, options.once, options.patience_s)
        self._parts: RunParts | None = None
        self._share: Share | None = None

    def run(self) -> Ended | None:
        """Until there is nothing more to wait for; None if it was asked to stop."""
        while not self.stop.agreed():
            found = self.watch.look() if self.world.is_main else None
            checkpoint, ended = gather_objects(_task(found))[0]
            if ended is not None:
                return ended
            if checkpoint is None:
                self.stop.wait(self.options.poll_s)
                continue
            averages = broadcast(found.averages if isinstance(found, Arrival) else None)
            self._evaluate(checkpoint, averages)
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
        """Score one checkpoint on all ranks, unless asked to stop meanwhile."""
        start, state = time.monotonic(), checkpoint.state
        config = parse_config(state.config, source=checkpoint.store.url)
        parts, share = self._prepared(config)
        detector = parts.detector(checkpoint, averages).place(self.world.device)
        fit_scorer(detector, parts.data, self.world, gather_objects)
        scored = self._score(f"step {state.step}", share, detector)
        if scored is None:
            return
        gathered = gather_objects((scored.to_bytes(), list(share.bad.values())))
        _check_damaged([bad for _, some in gathered for bad in some], config)
        if self.world.is_main:
            results = _merged([part for part, _ in gathered]).compute()
            self._note(checkpoint, results, config, time.monotonic() - start)

    def _prepared(self, config: RunConfig) -> tuple[RunParts, Share]:
        """Data, features and the images of this rank, made again only when the training changed its configuration."""
        if self._parts is None or self._share is None or self._parts.config != config:
            self._parts = RunParts.prepare(config, self.world, self.world.device)
            images = SyntheticSet(self._parts.data, self.options.per_class)
            self._share = Share(images, self.world)
            if self.world.is_main:
                write_sheet(images, self.options.out)
        return self._parts, self._share

    def _score(self, title: str, share: Share, detector: Detector) -> EvaluationState | None:
        """This rank's state; None if a rank was asked to stop."""
        state = EvaluationState(detector.spec.protocol)
        with Progress(self.world.own(title), share.num_rounds, shown=self.world.is_main) as progress:
            for number in range(share.num_rounds):
                if self.stop.agreed():
                    return None
                share.score(number, detector, state)
                progress.advance(1)
        return state

    def _note(self, checkpoint: Checkpoint, results: Results, config: RunConfig, seconds: float) -> None:
        """Write, show and track the results of a checkpoint."""
        line = self.record.add(checkpoint, results, seconds)
        self.watch.settle(checkpoint.state.step)
        shown = ", ".join(f"{title} {_shown(line['mean'][name])}" for name, title in LABEL.items())
        counts = f"{line['num_normals']} normals, {line['num_defects']} defects"
        print(f"step {line['step']}: {shown} ({counts}, {seconds:.1f} s)", flush=True)
        tracked = tracked_run(self.options.out, config, checkpoint.state.tracking_run)
        if tracked is not None:
            self.record.copy_to(tracked)


def _task(found: Arrival | Ended | None) -> tuple[Checkpoint | None, Ended | None]:
    """What the main rank tells the others; the weights go separately."""
    if isinstance(found, Arrival):
        return found.checkpoint, None
    return None, found


def _merged(parts: list[bytes]) -> EvaluationState:
    state = EvaluationState.from_bytes(parts[0])
    for part in parts[1:]:
        state.merge(EvaluationState.from_bytes(part))
    return state


def _check_damaged(bad: list[Exception], config: RunConfig) -> None:
    """Damaged held-out images are left out, up to the limit that training has."""
    if len(bad) > config.data.max_bad_samples:
        raise UserError(f"data.max_bad_samples: {len(bad)} damaged held-out samples; {bad[0]}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
