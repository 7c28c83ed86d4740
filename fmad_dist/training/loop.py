"""Training: the whole loop on one screen, everything in it a named component."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from fmad_dist.config import RunConfig
from fmad_dist.detector_files import SPEC_NAME
from fmad_dist.errors import UserError
from fmad_dist.features.prepare import PreparedFeatures, prepare_features
from fmad_dist.flow.couplings import merged_strength
from fmad_dist.flow.objective import FlowMatching
from fmad_dist.networks.build import build_network, network_spec
from fmad_dist.progress import Progress
from fmad_dist.stream.batches import Batch
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.system import NodeMonitor, joined
from fmad_dist.training.bad_samples import BadSamples
from fmad_dist.training.budget import layout_of
from fmad_dist.training.checkpoint import Checkpoints, TrainState
from fmad_dist.training.checkpoint_writer import CheckpointWriter
from fmad_dist.training.data import TrainingData, open_data
from fmad_dist.training.ema import ShardedEma
from fmad_dist.training.engine import (
    Engine,
    build_engine,
    compute_dtype,
    gather_objects,
    smallest_gpu,
    start_accelerator,
)
from fmad_dist.training.finish import finish_run
from fmad_dist.training.guard import NonFiniteGuard
from fmad_dist.training.preemption import Preempted, StopRequest
from fmad_dist.training.resume import load_newest, resume
from fmad_dist.training.schedule import learning_rate
from fmad_dist.training.step import StepRunner
from fmad_dist.training.throughput import Meter, image_share
from fmad_dist.training.watchdog import Watchdog
from fmad_dist.world import World

PREEMPTED_PATIENCE_S = 5.0  # for MLflow, when a scheduler waits for this process to end


@dataclass(frozen=True)
class TrainJob:
    """Everything a training run is made of, on one rank."""

    config: RunConfig
    world: World
    data: TrainingData
    layout: BatchLayout
    features: PreparedFeatures
    objective: FlowMatching
    engine: Engine
    ema: ShardedEma
    record: RunRecord
    tracked: TrackedRun
    bad: BadSamples
    checkpoints: Checkpoints
    writer: CheckpointWriter
    guard: NonFiniteGuard
    nodes: NodeMonitor

    def state(self, step: int) -> TrainState:
        """Every rank calls."""
        network = asdict(self.engine.network.spec)  # type: ignore[call-overload]
        coupling = merged_strength(gather_objects(self.objective.strength.state()))
        objective = self.config.objective.model_dump(mode="json")
        config = self.config.model_dump(mode="json")
        updates, digest = self.ema.updates, self.data.digest
        return TrainState(step, updates, digest, network, objective, coupling, self.tracked.run_id, config)


def train(config: RunConfig, world: World) -> Path:
    """Train, or go on from the latest checkpoint of the same run; returns the run directory. Every rank calls.

    Raises:
        UserError: data, features, backbone or a checkpoint do not fit the configuration, or training diverged.
        Preempted: it was asked to stop and saved a checkpoint.
    """
    job = set_up(config, world)
    start = resume(job)
    run_steps(job, start)
    if not is_finished(job, start):
        finish_run(job)
    job.engine.accelerator.end_training()
    return config.run_dir


def run_steps(job: TrainJob, step: int) -> None:
    """From after `step` steps to the last one: read, compute, average, log, save, and stop when asked to."""
    settings, world = job.config.train, job.world
    meter, losses = Meter(image_share(job.engine.network.spec, world)), list[torch.Tensor]()  # type: ignore[arg-type]
    runner = StepRunner(job.engine, job.ema, job.features, job.objective, job.config.model, job.guard)
    batches = meter.timed(read_batches(job, step))
    progress = Progress(f"train {job.config.name}", settings.steps, shown=world.is_main, start=step)
    with Watchdog(world, settings.hang_s) as watchdog, StopRequest(world) as stop, progress:
        while step < settings.steps:
            micro_batches = list(islice(batches, job.layout.accumulation))
            losses.append(runner.run(micro_batches, learning_rate(settings, step)))
            meter.count(settings.global_batch)
            job.bad.note(bad for batch in micro_batches for bad in batch.bad)
            log_samples(job, step, micro_batches)
            step += 1
            if job.guard.must_go_back:
                step = go_back(job, step)
                batches = meter.timed(read_batches(job, step))
                progress.done = step
                losses.clear()
                continue
            is_last = step == settings.steps
            if step % settings.log_every == 0 or is_last:
                progress.advance(0, note=log_metrics(job, step, losses, meter))
            if is_last or (step % settings.checkpoint_every == 0 and not job.guard.in_a_row):
                job.writer.save(job.engine, job.ema, job.state(step))
            job.writer.check()
            progress.advance(1)
            watchdog.beat(step)
            if stop.agreed() and not is_last:
                stop_here(job, step)
        job.writer.finish()


def stop_here(job: TrainJob, step: int) -> None:
    """Save and end, on all ranks at the same step."""
    job.writer.save(job.engine, job.ema, job.state(step))
    job.writer.finish()
    if job.world.is_main:
        job.tracked.close("KILLED", PREEMPTED_PATIENCE_S)
    raise Preempted(
        f"{job.config.name} was asked to stop and saved step {step} to {job.checkpoints.store.url}; start the same "
        "command again to go on."
    )


def go_back(job: TrainJob, step: int) -> int:
    """Load the newest checkpoint after too many gradients that are not finite; returns its step. Every rank calls.

    Raises:
        UserError: there is none, or it happened too often.
    """
    job.writer.finish()
    found = f"{job.guard.limit} steps in a row up to step {step} had a loss or gradient that is not finite"
    fix = "lower train.lr, raise train.warmup_samples or look at the newest images"
    state = load_newest(job) if job.guard.may_go_back else None
    if state is None:
        job.tracked.close("FAILED")
        raise UserError(f"training diverged: {found}, after {job.guard.rollbacks} returns to a checkpoint; {fix}.")
    job.guard.went_back()
    job.record.rewind(state.step)
    if job.world.is_main:
        times = f"{job.guard.rollbacks} of at most {job.guard.max_rollbacks}"
        print(f"{found}; went back to step {state.step} ({times})", file=sys.stderr, flush=True)
    return state.step


def set_up(config: RunConfig, world: World) -> TrainJob:
    """Plan the data, join the processes, prepare features, build the network; in the order of what fails fastest."""
    settings = config.train
    data = open_data(config, world)
    layout = BatchLayout.fit(settings.global_batch, settings.micro_batch, world.size)
    record = RunRecord(config.run_dir, world.is_main)
    accelerator = start_accelerator(settings, layout, world)
    bad = BadSamples(config.data.max_bad_samples, record, gather_objects)
    features = prepare_features(
        config.features,
        data,
        world,
        accelerator.device,
        gather_objects,
        config.data.reading,
        config.data.max_bad_samples,
    )
    bad.note((*data.bad, *features.bad))
    bad.settle()
    torch.manual_seed(settings.seed)
    num_classes = len(data.mixture.class_names)
    spec = network_spec(config.model, features.backbone.num_channels, config.features.grid, num_classes)
    recompute = layout_of(config, spec, layout, compute_dtype(settings), smallest_gpu()).checkpointing
    engine = build_engine(accelerator, build_network(spec, recompute), settings)
    ema = ShardedEma(engine.optimizer, settings.ema)
    tracked = TrackedRun(config, record)
    objective = FlowMatching(config.objective, settings.seed)
    checkpoints = Checkpoints(config.checkpoint_url, config.data.patience_s)
    writer = CheckpointWriter(checkpoints, world, settings.keep_checkpoints, settings.keep_every)
    guard = NonFiniteGuard(settings.max_skipped, settings.max_rollbacks)
    running = (record, tracked, bad, checkpoints, writer, guard, NodeMonitor(world))
    return TrainJob(config, world, data, layout, features, objective, engine, ema, *running)


def is_finished(job: TrainJob, start: int) -> bool:
    """Whether this start found nothing left to do; the main process decides for all."""
    done = start == job.config.train.steps and (job.config.run_dir / "detector" / SPEC_NAME).is_file()
    if done and job.world.is_main:
        job.tracked.close()
        print(f"{job.config.name} was complete already; choose another `name` to train anew", flush=True)
    return bool(gather_objects(done)[0])


def read_batches(job: TrainJob, start: int) -> Iterator[Batch]:
    """This rank's micro batches from step `start` on, in order."""
    pin = job.engine.device.type == "cuda"
    stop = job.config.train.steps
    return job.data.batches(job.features.source, job.layout, job.world.rank, start, stop, pin)


def log_metrics(job: TrainJob, done: int, losses: list[torch.Tensor], meter: Meter) -> str:
    """Write one line of metrics, averaged over the interval and all ranks; returns a note for the progress bar."""
    found = torch.stack(losses)
    finite = found[found.isfinite()]
    new = torch.tensor(float(job.bad.num_new), device=found.device)
    local = torch.stack([finite.sum(), found.isfinite().sum().float(), new])
    total, count, num_new = job.engine.accelerator.reduce(local, reduction="sum").tolist()
    loss = total / count if count else float("nan")
    norm = float(job.engine.deepspeed.get_global_grad_norm() or 0.0)
    losses.clear()
    values = {
        **({"loss": loss} if count else {}),
        "lr": learning_rate(job.config.train, done - 1),
        **({"grad_norm": norm} if math.isfinite(norm) else {}),
        **({"epoch": done * job.layout.global_batch / job.data.epoch_size} if job.data.epoch_size else {}),
        "samples": done * job.layout.global_batch,
        "skipped_steps": job.guard.skipped,
        "rollbacks": job.guard.rollbacks,
        "bad_samples": job.bad.settle() if num_new else len(job.bad.known),
        **meter.read(),
        **joined(job.engine.gather(job.nodes.read())),
    }
    job.record.metrics(done, values)
    mfu = f"MFU {values['mfu_percent']:.0f}%  " if "mfu_percent" in values else ""
    return (
        f"loss {loss:.4f}  {values['images_per_s']:.0f} images/s  {mfu}data wait {values['data_wait_percent']:.0f}%  "
        f"{values['memory_gib']:.1f} GiB"
    )


def log_samples(job: TrainJob, step: int, micro_batches: list[Batch]) -> None:
    if not job.config.train.log_samples:
        return
    with open(job.config.run_dir / f"samples-{job.world.rank}.jsonl", "a") as file:
        for batch in micro_batches:
            for position, sample_id in zip(batch.positions.tolist(), batch.sample_ids, strict=True):
                file.write(json.dumps({"step": step, "position": position, "sample_id": sample_id}) + "\n")
