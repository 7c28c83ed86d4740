"""What a training run is made of, and how it goes on from its newest checkpoint that can be used.

It goes on at whatever world size and ZeRO stage this start has.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.files import SPEC_NAME, read_spec
from fmad_dist.features.prepare import PreparedFeatures
from fmad_dist.flow.objective import FlowMatching, merged_strength
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun, run_tags
from fmad_dist.training.bad_samples import BadSamples
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints, TrainState, check_belongs
from fmad_dist.training.checkpoint_reader import agreed, newest_usable, opened
from fmad_dist.training.checkpoint_writer import CheckpointWriter
from fmad_dist.training.data import TrainingData
from fmad_dist.training.engine import Engine, describe
from fmad_dist.training.place import Place
from fmad_dist.training.step import NonFiniteGuard
from fmad_dist.training.throughput import NodeMonitor
from fmad_dist.training.weights import MOMENTS, WEIGHT, ShardedEma, restore

CONFIG_NAME = "config.yaml"


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

    def state(self, place: Place) -> TrainState:
        """Describe the run at this place, for a checkpoint; every rank calls."""
        return TrainState(
            step=place.step,
            ema_updates=self.ema.updates,
            plan_digest=self.data.digest,
            network=asdict(self.engine.network.spec),
            objective=self.config.objective.model_dump(mode="json"),
            coupling=self.coupling(),
            tracking_run=self.tracked.run_id,
            config=self.config.model_dump(mode="json"),
            position=place.position,
        )

    def coupling(self) -> tuple[float, float]:
        """Merge the sums behind the coupling's strength; every rank calls."""
        return merged_strength(self.world.gather(self.objective.strength.state()))


def resume(job: TrainJob) -> Place:
    """Load the newest usable checkpoint if there is one; returns where to go on. Every rank calls.

    Raises:
        UserError: there are checkpoints, but none can be used or they are of another run.
    """
    state = load_newest(job)
    tracking_run = state.tracking_run if state else _run_without_checkpoint(job)
    _discard_detector(job, state.step if state else 0)
    if state is not None:
        job.record.rewind(state.step)
    elif (job.config.run_dir / CONFIG_NAME).exists() and job.world.is_main:
        job.record.rewind(0)
    job.record.write(CONFIG_NAME, dump_config(job.config))
    environment = describe(job.engine, job.world)
    job.record.write("environment.json", json.dumps(environment, indent=1))
    if job.world.is_main:
        digests = {dataset.name: dataset.manifest.digest for dataset in job.data.mixture.datasets}
        tags = run_tags(environment, digests, job.config.tracking.parent_run)
        job.tracked.start(tracking_run, tags)
        if state:
            print(f"resumed {job.config.name} at step {state.step} from {job.checkpoints.store.url}", flush=True)
    return Place(state.step, state.position) if state else Place(0, 0)


def _discard_detector(job: TrainJob, step: int) -> None:
    """Remove a detector of later steps than `step`: they are about to be trained again, perhaps otherwise, and a start
    after them must not find it."""
    path = job.config.run_dir / "detector" / SPEC_NAME
    try:
        is_later = job.world.is_main and path.is_file() and read_spec(path.parent).train_step > step
    except UserError:  # damaged; it will be made anew
        return
    if is_later:
        path.unlink()


def _run_without_checkpoint(job: TrainJob) -> str | None:
    """Return the MLflow run of a start that ended before its first checkpoint, if its configuration was the same."""
    path = job.config.run_dir / CONFIG_NAME
    same = path.exists() and path.read_text() == dump_config(job.config)
    return job.tracked.noted().get("run_id") if same else None


def load_newest(job: TrainJob) -> TrainState | None:
    """Load the newest checkpoint that all ranks can use into the engine; every rank calls.

    Raises:
        UserError: there are checkpoints, but none can be used or they are of another run.
    """
    found = newest_usable(job.checkpoints, job.world, partial(_load, job))
    return found.state if found else None


def _load(job: TrainJob, checkpoint: Checkpoint) -> None:
    agreed(job.world, partial(_check_fits, job, checkpoint))
    state, parameters = checkpoint.state, [name for name, _ in job.engine.network.named_parameters()]
    wanted = [f"{kind}/{name}" for kind in (WEIGHT, *MOMENTS, "ema") for name in parameters]
    with opened(checkpoint, job.world, wanted) as tensors:
        restore(job.engine, job.ema, tensors.get, state.ema_updates, state.step)
    job.objective.strength.load(state.coupling)


def _check_fits(job: TrainJob, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another run, or of more steps than the configuration has (UserError)."""
    check_belongs(checkpoint, job.engine.network.spec, job.config.objective, job.data.digest)
    if checkpoint.state.step > job.config.train.steps:
        raise UserError(f"train.steps: {job.config.train.steps}, but {checkpoint.store.url} is further; raise it.")
