"""Training: the whole loop on one screen, everything in it a named component."""

import json
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError, writing
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.detector.fit import calibrate
from fmad_dist.features.prepare import prepare_features
from fmad_dist.flow.objective import FlowMatching
from fmad_dist.networks.build import build_network, network_spec
from fmad_dist.registry.register import register_trained
from fmad_dist.stream.batches import Batch
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import REGISTERED_NAME, TrackedRun
from fmad_dist.training.bad_samples import BadSamples
from fmad_dist.training.budget import layout_of
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.training.checkpoint_writer import CheckpointWriter
from fmad_dist.training.data import open_data
from fmad_dist.training.engine import build_engine, compute_dtype, smallest_gpu, start_accelerator
from fmad_dist.training.export import RunParts
from fmad_dist.training.interruption import Preempted, StopRequest, Watchdog
from fmad_dist.training.job import TrainJob, load_newest, resume
from fmad_dist.training.ownership import owned
from fmad_dist.training.place import Place
from fmad_dist.training.step import NonFiniteGuard, StepRunner, learning_rate
from fmad_dist.training.throughput import Meter, NodeMonitor, image_share
from fmad_dist.training.weights import ShardedEma, averaged_weights

PREEMPTED_PATIENCE_S = 5.0  # for MLflow, when a scheduler waits for this process to end


def train(config: RunConfig, world: World) -> Path:
    """Train, or go on from the latest checkpoint of the same run; returns the run directory. Every rank calls.

    Raises:
        UserError: data, features, backbone or a checkpoint do not fit the configuration, training diverged, or
            another job has the run.
        Preempted: it was asked to stop and saved a checkpoint.
    """
    with owned(config, world):
        job = set_up(config, world)
        place = resume(job)
        found_all = place.step == config.train.steps
        run_steps(job, place)
        if not (found_all and is_finished(job)):
            finish_run(job)
        job.engine.accelerator.end_training()
    return config.run_dir


def run_steps(job: TrainJob, place: Place) -> None:
    """Train from a place to the last step: read, compute, average, log, save, and stop when asked to."""
    settings, world = job.config.train, job.world
    meter, losses = Meter(image_share(job.engine.network.spec, world)), list[torch.Tensor]()
    bad_from = place.position  # where the first of the steps in a row that are not finite began
    runner = StepRunner(job.engine, job.ema, job.features, job.objective, job.config.model, job.guard)
    batches = meter.timed(read_batches(job, place))
    progress = Progress(f"train {job.config.name}", settings.steps, shown=world.is_main, start=place.step)
    with Watchdog(world, settings.hang_s) as watchdog, StopRequest(world) as stop, progress:
        while place.step < settings.steps:
            micro_batches = list(islice(batches, job.layout.accumulation))
            rate = learning_rate(settings, place)
            losses.append(runner.run(micro_batches, rate))
            if job.guard.in_a_row == 1:
                bad_from = place.position
            meter.count(settings.global_batch)
            job.bad.note(bad for batch in micro_batches for bad in batch.bad)
            log_samples(job, place.step, micro_batches)
            place.advance(settings.global_batch)
            if job.guard.must_go_back:
                place = go_back(job, place, bad_from)
                batches = meter.timed(read_batches(job, place))
                progress.done = place.step
                losses.clear()
                continue
            is_last = place.step == settings.steps
            if place.step % settings.log_every == 0 or is_last:
                progress.advance(0, note=log_metrics(job, place, rate, losses, meter))
            if is_last or (place.step % settings.checkpoint_every == 0 and not job.guard.in_a_row):
                job.writer.save(job.engine, job.ema, job.state(place))
            job.writer.check()
            progress.advance(1)
            watchdog.beat(place.step)
            if stop.agreed() and not is_last:
                stop_here(job, place)
        job.writer.finish()
    if stop.asked:  # too late for a step to stop at; the other ranks end with this one
        raise Preempted(f"{job.config.name} was asked to stop; start the same command again to make its detector.")


def stop_here(job: TrainJob, place: Place) -> None:
    """Save and end, on all ranks at the same step.

    Raises:
        Preempted: always.
    """
    job.writer.save(job.engine, job.ema, job.state(place))
    job.writer.finish()
    if job.world.is_main:
        job.tracked.close("KILLED", PREEMPTED_PATIENCE_S)
    raise Preempted(
        f"{job.config.name} was asked to stop and saved step {place.step} to {job.checkpoints.store.url}; start the "
        "same command again to go on."
    )


def go_back(job: TrainJob, place: Place, bad: int) -> Place:
    """Load the newest checkpoint after too many gradients that are not finite; returns where to go on. The samples from
    position `bad` of the stream up to here are left out from now on: the same data and noise would most likely do the
    same again. Every rank calls.

    Raises:
        UserError: there is none, or it happened too often.
    """
    job.writer.finish()
    found = f"{job.guard.limit} steps in a row up to step {place.step} had a loss or gradient that is not finite"
    fix = "lower train.lr, raise train.warmup_samples or look at the newest images"
    state = load_newest(job) if job.guard.may_go_back else None
    if state is None:
        job.tracked.close("FAILED")
        raise UserError(f"training diverged: {found}, after {job.guard.rollbacks} returns to a checkpoint; {fix}.")
    job.guard.went_back()
    job.record.rewind(state.step)
    if job.world.is_main:
        times = f"{job.guard.rollbacks} of at most {job.guard.max_rollbacks}"
        left_out = f"leaves out positions {bad} to {place.position - 1} of the stream"
        print(f"{found}; went back to step {state.step} ({times}) and {left_out}", file=sys.stderr, flush=True)
    return place.gone_back(state.step, state.position, bad)


def set_up(config: RunConfig, world: World) -> TrainJob:
    """Plan the data, join the processes, prepare features, build the network; in the order of what fails fastest."""
    settings = config.train
    data = open_data(config, world)
    layout = BatchLayout.fit(settings.global_batch, settings.micro_batch, world.size)
    record = RunRecord(config.run_dir, world.is_main)
    accelerator = start_accelerator(settings, layout, world)
    bad = BadSamples(config.data.max_bad_samples, record, world)
    features = prepare_features(config, data, world, accelerator.device)
    bad.note((*data.bad, *features.bad))
    bad.settle()
    torch.manual_seed(settings.seed)
    num_classes = len(data.mixture.class_names)
    spec = network_spec(config.model, features.backbone.num_channels, config.features.grid, num_classes)
    recompute = layout_of(config, spec, layout, compute_dtype(settings), smallest_gpu(world)).checkpointing
    engine = build_engine(accelerator, build_network(spec, recompute), settings)
    checkpoints = Checkpoints(config.checkpoint_url, config.data.patience_s)
    return TrainJob(
        config=config,
        world=world,
        data=data,
        layout=layout,
        features=features,
        objective=FlowMatching(config.objective, settings.seed),
        engine=engine,
        ema=ShardedEma(engine.optimizer, settings.ema),
        record=record,
        tracked=TrackedRun(config, record),
        bad=bad,
        checkpoints=checkpoints,
        writer=CheckpointWriter(checkpoints, world, settings.keep_checkpoints, settings.keep_every),
        guard=NonFiniteGuard(settings.max_skipped, settings.max_rollbacks),
        nodes=NodeMonitor(world),
    )


def is_finished(job: TrainJob) -> bool:
    """Whether a start that found all steps done found their detector, too; the main process decides for all and
    registers one that is not registered yet."""
    config = job.config
    known = {"manifest_digests": job.data.mixture.digests, "backbone_digest": job.features.weights_digest}
    lacking = what_lacks(config.run_dir, config, known) if job.world.is_main else None
    if job.world.is_main and lacking is None:
        if not (config.run_dir / REGISTERED_NAME).is_file():
            register_trained(job.tracked, config.run_dir / "detector")
        job.tracked.close()
        print(f"{config.name} was complete already; choose another `name` to train anew", flush=True)
    elif job.world.is_main:
        print(f"{config.name}: {lacking}; it is made from the last checkpoint", flush=True)
    return job.world.broadcast(lacking) is None


def read_batches(job: TrainJob, place: Place) -> Iterator[Batch]:
    """Read this rank's micro batches from a place to the last step, in order."""
    pin = job.engine.device.type == "cuda"
    starts = place.starts(job.layout.global_batch, job.config.train.steps)
    return job.data.batches(job.features.source, job.layout, job.world.rank, starts, pin)


def log_metrics(job: TrainJob, place: Place, rate: float, losses: list[torch.Tensor], meter: Meter) -> str:
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
        "lr": rate,
        **({"grad_norm": norm} if math.isfinite(norm) else {}),
        **({"epoch": place.position / job.data.epoch_size} if job.data.epoch_size else {}),
        "samples": place.position,
        "skipped_steps": job.guard.skipped,
        "rollbacks": job.guard.rollbacks,
        "bad_samples": job.bad.settle() if num_new else len(job.bad.known),
        **meter.read(),
        **{name: value for node in job.world.gather(job.nodes.read()) for name, value in node.items()},
    }
    job.record.metrics(place.step, values)
    mfu = f"MFU {values['mfu_percent']:.0f}%  " if "mfu_percent" in values else ""
    return (
        f"loss {loss:.4f}  {values['images_per_s']:.0f} images/s  {mfu}data wait {values['data_wait_percent']:.0f}%  "
        f"{values['memory_gib']:.1f} GiB"
    )


def log_samples(job: TrainJob, step: int, micro_batches: list[Batch]) -> None:
    """Write which samples this rank trained on, if the configuration asks for it."""
    if not job.config.train.log_samples:
        return
    path = job.config.run_dir / f"samples-{job.world.rank}.jsonl"
    with writing(path), open(path, "a") as file:
        for batch in micro_batches:
            for position, sample_id in zip(batch.positions.tolist(), batch.sample_ids, strict=True):
                file.write(json.dumps({"step": step, "position": position, "sample_id": sample_id}) + "\n")


def finish_run(job: TrainJob) -> None:
    """Make, calibrate, save and register the detector of a run after its last step.

    Every rank calls: all of them gather the weights and score a share of the held-out normals.
    """
    config, parts = job.config, RunParts(job.config, job.data, job.features, job.engine.network.spec)
    detector = parts.assembled(averaged_weights(job.engine, job.ema), job.coupling(), config.train.steps)
    detector.move_to(job.engine.device)
    detector = calibrate(detector, job.data, job.world, job.bad.note, config.calibration.false_alarm_rate)
    job.bad.settle()
    if job.world.is_main:
        folder = config.run_dir / "detector"
        (config.run_dir / REGISTERED_NAME).unlink(missing_ok=True)  # it tells of the detector that goes now
        detector.save(folder)
        register_trained(job.tracked, folder)
        job.tracked.close()
    job.world.barrier()
