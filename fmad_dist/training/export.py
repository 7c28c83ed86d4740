"""A detector from a checkpoint, offline: one process, no GPU, whatever world and ZeRO stage wrote it.

`RunParts` is what the detectors of all checkpoints of a run have in common; the end of a training and the evaluator
beside it make theirs of it, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import load_config, parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import SPEC_NAME, DetectorSpec, read_spec
from fmad_dist.detector.fit import calibrate
from fmad_dist.features.prepare import PreparedFeatures, prepare_features
from fmad_dist.flow.objective import strength_of
from fmad_dist.networks.build import NetworkSpec, network_spec
from fmad_dist.storage import Store, use_endpoint
from fmad_dist.storage.scratch import check_writable
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints, check_belongs
from fmad_dist.training.checkpoint_reader import read_averages
from fmad_dist.training.data import TrainingData, open_data

NOT_COMPARED = {"calibration", "weights_sha256", "spec_sha256"}  # they follow from the rest, or differ by rounding


def export(run: str, step: int | None, out: Path, overwrite: bool = False) -> int:
    """Write the averaged weights of a checkpoint as a calibrated detector to `out`; returns the checkpoint's step.

    `run` is a run directory, or the folder or URL that holds its checkpoints.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its data cannot be read any more; or `out` cannot be
            written, or holds another detector that `overwrite` does not allow to replace.
    """
    world = World()
    checkpoint = find_checkpoint(run, step)
    check_writable(out, "--out")
    held = None if overwrite else _held(out)
    _check_same(out, held, {"train_step": checkpoint.state.step})
    config = parse_config(checkpoint.state.config, source=checkpoint.store.url)
    parts = RunParts.prepare(config, world, torch.device("cpu"))
    detector = parts.detector(checkpoint, read_averages(checkpoint))
    _check_same(out, held, detector.spec.model_dump(exclude=NOT_COMPARED))
    bad: list[BadSample] = []
    detector = calibrate(detector, parts.data, world, bad.extend, config.calibration.false_alarm_rate)
    if len(bad) > config.data.max_bad_samples:
        raise UserError(f"data.max_bad_samples: {len(bad)} damaged held-out samples; {bad[0]}")
    detector.save(out)
    return checkpoint.state.step


def _held(out: Path) -> dict[str, Any] | None:
    """Read what a detector in the folder is made of; None if there is none, or a damaged one."""
    try:
        return read_spec(out).model_dump() if (out / SPEC_NAME).exists() else None
    except UserError:
        return None


def _check_same(out: Path, held: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    changed = [name for name, value in wanted.items() if held is not None and held[name] != value]
    if held is None or not changed:
        return
    what = f"other {', '.join(changed)}"
    if "train_step" in changed:
        what = f"step {held['train_step']} instead of {wanted['train_step']}"
    raise UserError(f"{out}: holds a detector with {what}; choose another --out, or give --overwrite to replace it.")


def checkpoints_of(run: str) -> tuple[Checkpoints, RunConfig | None]:
    """Return the checkpoints of a run directory and its configuration, or those in a folder or at a URL, and None."""
    store = Store(run)
    if not (store.is_local and store.exists("config.yaml")):
        return Checkpoints(run), None
    config = load_config(store.path("config.yaml"))
    use_endpoint(config.data.endpoint_url)
    return Checkpoints(config.checkpoint_url), config


def find_checkpoint(run: str, step: int | None) -> Checkpoint:
    """Return the checkpoint of `step`, or the newest that can be read.

    Raises:
        UserError: there is none.
    """
    checkpoints, _ = checkpoints_of(run)
    if step is not None and step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"--step: {checkpoints.store.url} has no checkpoint of step {step}; there is {there}.")
    found = checkpoints.newest_readable() if step is None else checkpoints.read(step)
    if found is None:
        raise UserError(f"{checkpoints.store.url}: no complete checkpoint; give a run directory or its checkpoint URL.")
    return found


@dataclass(frozen=True)
class RunParts:
    """The configuration, data, features and network of a run."""

    config: RunConfig
    data: TrainingData
    features: PreparedFeatures
    network: NetworkSpec

    @classmethod
    def prepare(cls, config: RunConfig, world: World, device: torch.device) -> "RunParts":
        """Open the data of a run and prepare its features, the backbone on `device`; every rank calls.

        Raises:
            UserError: the data cannot be read any more, or the backbone cannot be had.
        """
        use_endpoint(config.data.endpoint_url)
        data = open_data(config, world)
        features = prepare_features(config, data, world, device)
        num_classes = len(data.mixture.class_names)
        network = network_spec(config.model, features.backbone.num_channels, config.features.grid, num_classes)
        return cls(config, data, features, network)

    def detector(self, checkpoint: Checkpoint, averages: dict[str, Tensor]) -> Detector:
        """Make the detector of a checkpoint and its averaged weights; it is not calibrated, and on the CPU.

        Raises:
            UserError: the checkpoint is of another architecture, objective or sample stream.
        """
        check_belongs(checkpoint, self.network, self.config.objective, self.data.digest)
        return self.assembled(averages, checkpoint.state.coupling, checkpoint.state.step)

    def assembled(self, weights: dict[str, Tensor], coupling: tuple[float, float], step: int) -> Detector:
        """Make a detector of averaged weights and the coupling's sums after `step` steps, as `detector` does."""
        manifests = {dataset.name: dataset.manifest for dataset in self.data.mixture.datasets}
        spec = DetectorSpec(
            features=self.config.features.model_copy(update={"cache": None}),
            backbone_digest=self.features.weights_digest,
            network=self.network,
            objective=self.config.objective,
            coupling_strength=strength_of(coupling),
            scorer=self.config.scorer,
            precision=self.config.calibration.precision,
            protocol=self.config.protocol,
            seed=self.config.train.seed,
            class_names=tuple(self.data.mixture.class_names),
            manifest_digests=self.data.mixture.digests,
            licences={name: manifest.licence for name, manifest in manifests.items()},
            train_step=step,
        )
        detector = Detector(spec)
        detector.backbone.load_state_dict(self.features.backbone.state_dict())
        detector.whitening.load_state_dict(self.features.whitening.state_dict())
        detector.network.load_state_dict(weights)
        detector.class_means.copy_(self.features.class_means())
        return detector
