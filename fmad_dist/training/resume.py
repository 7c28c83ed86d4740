"""Go on from the newest checkpoint that can be used, at whatever world size and ZeRO stage this start has."""

import json
import sys
from typing import TYPE_CHECKING

from fmad_dist.config_files import dump_config
from fmad_dist.errors import UserError
from fmad_dist.tracking.tags import run_tags
from fmad_dist.training.checkpoint import Checkpoint, Damaged, TrainState, check_belongs
from fmad_dist.training.checkpoint_reader import opened
from fmad_dist.training.engine import describe
from fmad_dist.training.weights import restore

if TYPE_CHECKING:
    from fmad_dist.training.loop import TrainJob

CONFIG_NAME = "config.yaml"


def resume(job: "TrainJob") -> int:
    """Load the newest usable checkpoint if there is one; returns the step to go on with. Every rank calls.

    Raises:
        UserError: there are checkpoints, but none can be used or they are of another run.
    """
    state = load_newest(job)
    tracking_run = state.tracking_run if state else _run_without_checkpoint(job)
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
    return state.step if state else 0


def _run_without_checkpoint(job: "TrainJob") -> str | None:
    """The MLflow run of a start that ended before its first checkpoint, if it was of the same configuration."""
    path = job.config.run_dir / CONFIG_NAME
    same = path.exists() and path.read_text() == dump_config(job.config)
    return job.tracked.noted().get("run_id") if same else None


def load_newest(job: "TrainJob") -> TrainState | None:
    """Put the newest usable checkpoint into the engine; a damaged one is named and the one before it is taken."""
    steps = job.checkpoints.steps()
    for step in reversed(steps):
        try:
            checkpoint = job.checkpoints.read(step)
            _check(job, checkpoint)
            with opened(checkpoint, job.world) as tensors:
                restore(job.engine, job.ema, tensors.get, checkpoint.state.ema_updates, step)
            job.objective.strength.load(checkpoint.state.coupling)
            return checkpoint.state
        except Damaged as error:
            if job.world.is_main:
                print(f"checkpoint of step {step} cannot be used: {error} Taking the one before.", file=sys.stderr)
    if steps:
        raise UserError(
            f"{job.checkpoints.store.url}: none of the {len(steps)} checkpoints can be used; restore one, or choose "
            "another `name` to train anew."
        )
    return None


def _check(job: "TrainJob", checkpoint: Checkpoint) -> None:
    network = job.engine.network.spec
    check_belongs(checkpoint, network, job.config.objective, job.data.digest)  # type: ignore[arg-type]
    if checkpoint.state.step > job.config.train.steps:
        raise UserError(f"train.steps: {job.config.train.steps}, but {checkpoint.store.url} is further; raise it.")
