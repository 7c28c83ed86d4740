"""A detector from a checkpoint, offline: one process, no GPU, whatever world and ZeRO stage wrote it."""

from pathlib import Path

import torch

from fmad_dist.config_files import load_config, parse_config
from fmad_dist.errors import UserError
from fmad_dist.features.prepare import prepare_features
from fmad_dist.networks.build import network_spec
from fmad_dist.scoring.held_out import calibrate
from fmad_dist.storage import Store, use_endpoint
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints, check_belongs
from fmad_dist.training.checkpoint_reader import opened
from fmad_dist.training.data import open_data
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.finish import assemble
from fmad_dist.world import World


def export(run: str, step: int | None, out: Path) -> int:
    """Write the averaged weights of a checkpoint as a calibrated detector to `out`; returns the checkpoint's step.

    `run` is a run directory, or the folder or URL that holds its checkpoints.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its data cannot be read any more.
    """
    world = World()
    checkpoint = find_checkpoint(run, step)
    config = parse_config(checkpoint.state.config, source=checkpoint.store.url)
    use_endpoint(config.data.endpoint_url)
    data = open_data(config, world)
    features = prepare_features(
        config.features,
        data,
        world,
        torch.device("cpu"),
        gather_objects,
        config.data.reading,
        config.data.max_bad_samples,
    )
    num_classes = len(data.mixture.class_names)
    network = network_spec(config.model, features.backbone.num_channels, config.features.grid, num_classes)
    check_belongs(checkpoint, network, config.objective, data.digest)
    with opened(checkpoint, world) as tensors:
        weights = {name: tensors.get("ema", name) for name in tensors.names("ema")}
    state = checkpoint.state
    detector = assemble(config, data, features, network, weights, state.coupling, state.step)
    bad: list[BadSample] = []
    detector.calibrated(
        calibrate(detector, data, world, gather_objects, bad.extend, config.calibration.false_alarm_rate)
    )
    if len(bad) > config.data.max_bad_samples:
        raise UserError(f"data.max_bad_samples: {len(bad)} damaged held-out samples; {bad[0]}")
    detector.save(out)
    return state.step


def find_checkpoint(run: str, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, or the newest that can be read.

    Raises:
        UserError: there is none.
    """
    store = Store(run)
    has_config = store.is_local and store.exists("config.yaml")
    checkpoints = Checkpoints(load_config(store.path("config.yaml")).checkpoint_url if has_config else run)
    if step is not None and step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"--step: {checkpoints.store.url} has no checkpoint of step {step}; there is {there}.")
    found = checkpoints.newest_readable() if step is None else checkpoints.read(step)
    if found is None:
        raise UserError(f"{checkpoints.store.url}: no complete checkpoint; give a run directory or its checkpoint URL.")
    return found
