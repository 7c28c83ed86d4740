"""Training: the whole loop on one screen, everything in it a named component."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from fmad_dist.config import RunConfig
from fmad_dist.config_files import dump_config
from fmad_dist.detector import SPEC_NAME
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
from fmad_dist.training.bad_samples import BadSamples
from fmad_dist.training.checkpoint import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from fmad_dist.training.data import TrainingData, open_data
from fmad_dist.training.ema import ShardedEma
from fmad_dist.training.engine import Engine, build_engine, describe, gather_objects, start_accelerator
from fmad_dist.training.finish import finish_run
from fmad_dist.training.schedule import learning_rate
from fmad_dist.training.step import StepRunner
from fmad_dist.training.throughput import Meter
from fmad_dist.world import World


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

    @property
    def checkpoints(self) -> Path:
        return self.config.run_dir / "checkpoints"

    def state(self, step: int) -> TrainState:
        """Every rank calls."""
        network = asdict(self.engine.network.spec)  # type: ignore[call-overload]
        coupling = merged_strength(gather_objects(self.objective.strength.state()))
        objective = self.config.objective.model_dump(mode="json")
        return TrainState(step, self.ema.updates, self.data.digest, network, objective, coupling, self.tracked.run_id)


def train(config: RunConfig, world: World) -> Path:
    """Train, or go on from the latest checkpoint of the same run; returns the run directory. Every rank calls.

    Raises:
        UserError: data, features, backbone or an existing checkpoint do not fit the configuration.
    """
    job = set_up(config, world)
    start = resume(job)
    settings = config.train
    meter = Meter()
    runner = StepRunner(job.engine, job.ema, job.features, job.objective, config.model)
    batches = meter.timed(read_batches(job, start))
    losses: list[torch.Tensor] = []
    with Progress(f"train {config.name}", settings.steps, shown=world.is_main, start=start) as progress:
        for step in range(start, settings.steps):
            micro_batches = list(islice(batches, job.layout.accumulation))
            losses.append(runner.run(micro_batches, learning_rate(settings, step)))
            meter.count(settings.global_batch)
            job.bad.note(bad for batch in micro_batches for bad in batch.bad)
            log_samples(job, step, micro_batches)
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                progress.advance(0, note=log_metrics(job, done, losses, meter))
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                save_checkpoint(
                    job.checkpoints, job.engine, job.ema, job.state(done), settings.keep_checkpoints, world.is_main
                )
            progress.advance(1)
    if not is_finished(job, start):
        finish_run(job)
    job.engine.accelerator.end_training()
    return config.run_dir


def set_up(config: RunConfig, world: World) -> TrainJob:
    """Plan the data, join the processes, prepare features, build the network; in the order of what fails fastest."""
    settings = config.train
    data = open_data(config, world)
    layout = BatchLayout.fit(settings.global_batch, settings.micro_batch, world.size)
    record = RunRecord(config.run_dir, world.is_main)
    accelerator = start_accelerator(settings, layout)
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
    engine = build_engine(accelerator, build_network(spec, config.model.checkpointing), settings)
    ema = ShardedEma(engine.optimizer, settings.ema)
    tracked = TrackedRun(config, record)
    objective = FlowMatching(config.objective, settings.seed)
    return TrainJob(config, world, data, layout, features, objective, engine, ema, record, tracked, bad)


def resume(job: TrainJob) -> int:
    """Load the newest checkpoint of this run if there is one; returns the step to go on with."""
    found = list_checkpoints(job.checkpoints)
    state = None
    if found:
        network = job.engine.network.spec
        state = read_state(found[-1], network, job.config.objective, job.data.digest)  # type: ignore[arg-type]
        if state.step > job.config.train.steps:
            raise UserError(f"train.steps: {job.config.train.steps}, but {found[-1]} is further; raise it.")
        load_checkpoint(found[-1], job.engine, job.ema, state)
        job.objective.strength.load(state.coupling)
        job.record.rewind(state.step)
    elif (job.config.run_dir / "config.yaml").exists() and job.world.is_main:
        job.record.rewind(0)
    job.record.write("config.yaml", dump_config(job.config))
    job.record.write("environment.json", json.dumps(describe(job.engine, job.world), indent=1))
    if job.world.is_main:
        job.tracked.start(state.tracking_run if state else None)
        if state:
            print(f"resumed {job.config.name} at step {state.step} from {found[-1]}", flush=True)
    return state.step if state else 0


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
    local = torch.stack([torch.stack(losses).mean(), torch.tensor(float(job.bad.num_new), device=job.engine.device)])
    loss, num_new = job.engine.accelerator.reduce(local, reduction="mean").tolist()
    losses.clear()
    if not torch.isfinite(torch.tensor(loss)):
        raise UserError(
            f"training diverged: the loss is {loss} at step {done}; lower train.lr or raise warmup_samples."
        )
    values = {
        "loss": loss,
        "lr": learning_rate(job.config.train, done - 1),
        "grad_norm": float(job.engine.deepspeed.get_global_grad_norm() or 0.0),
        **({"epoch": done * job.layout.global_batch / job.data.epoch_size} if job.data.epoch_size else {}),
        "samples": done * job.layout.global_batch,
        "bad_samples": job.bad.settle() if num_new else len(job.bad.known),
        **meter.read(),
    }
    job.record.metrics(done, values)
    job.tracked.metrics(done, values)
    return (
        f"loss {loss:.4f}  {values['images_per_s']:.0f} images/s  data wait {values['data_wait_percent']:.0f}%  "
        f"{values['memory_gib']:.1f} GiB"
    )


def log_samples(job: TrainJob, step: int, micro_batches: list[Batch]) -> None:
    if not job.config.train.log_samples:
        return
    with open(job.config.run_dir / f"samples-{job.world.rank}.jsonl", "a") as file:
        for batch in micro_batches:
            for position, sample_id in zip(batch.positions.tolist(), batch.sample_ids, strict=True):
                file.write(json.dumps({"step": step, "position": position, "sample_id": sample_id}) + "\n")
