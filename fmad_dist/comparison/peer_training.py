"""How the peers of a comparison are trained or built, on any number of processes."""

import numpy as np
import torch
from torch import Tensor

from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches
from fmad_dist.comparison.peers import BankConfig, CFlowConfig, PeerConfig
from fmad_dist.comparison.training_features import TrainingFeatures
from fmad_dist.detector import Detector
from fmad_dist.progress import Progress
from fmad_dist.scoring.coreset import coreset
from fmad_dist.scoring.interface import Scorer
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.engine import broadcast_object
from fmad_dist.world import World


def train_peer(peer: PeerConfig, features: TrainingFeatures, world: World) -> Scorer:
    """Every rank calls and has the same scorer afterwards.

    Raises:
        UserError: more training images are damaged than a run allows.
    """
    if isinstance(peer, CFlowConfig):
        return _train_cflow(peer, features, world)
    return _build_banks(peer, features, world)


def told_classes(detector: Detector, mixture: Mixture, rows: tuple[int, ...]) -> Detector:
    """The detector for the test images at these global indices. A peer with a bank per class is told their classes;
    all others are as they were."""
    scorer = detector.scorer
    if not (isinstance(scorer, BankScorer) and scorer.per_class):
        return detector
    return detector.scored_by(scorer.told(mixture.class_numbers[list(rows)].tolist()))


def _train_cflow(peer: CFlowConfig, features: TrainingFeatures, world: World) -> Scorer:
    """The main process trains and the others get its weights."""
    from fmad_dist.comparison.cflow import CFlow, fit_cflow

    spec = features.detector.spec
    scorer = CFlow(spec.network.channels, spec.network.grid, world.device, spec.seed)
    if world.is_main:
        steps = peer.steps or spec.train_step
        with Progress(f"train {peer.title}", steps) as progress:
            fit_cflow(scorer, progress.over(features.batches(steps)), spec.seed)
    weights = {name: tensor.cpu() for name, tensor in scorer.decoder.state_dict().items()} if world.is_main else None
    scorer.decoder.load_state_dict(broadcast_object(weights, 0))
    return scorer


def _build_banks(peer: BankConfig, features: TrainingFeatures, world: World) -> Scorer:
    """The ranks build one bank after another of their share of the classes, and then send them to each other."""
    patches = Patches(peer.side, _channels(peer.taps, features.detector))
    groups = _groups(peer, features)
    own = {
        number: _build(peer, name, rows, patches, features, world).cpu()
        for number, (name, rows) in enumerate(groups.items())
        if number % world.size == world.rank
    }
    banks = [
        MemoryBank(broadcast_object(own.get(number), number % world.size).to(world.device))
        for number in range(len(groups))
    ]
    return BankScorer(banks, patches, peer.neighbours, peer.name == "bank")


def _groups(peer: BankConfig, features: TrainingFeatures) -> dict[str, np.ndarray]:
    """The training normals of each bank by its name, in the order of the class numbers."""
    train, mixture = features.data.split.train, features.data.mixture
    if peer.name == "bank_pooled":
        return {"all classes": train}
    numbers = mixture.class_numbers[train]
    return {name: train[numbers == number] for number, name in enumerate(mixture.class_names)}


def _build(
    peer: BankConfig, name: str, rows: np.ndarray, patches: Patches, features: TrainingFeatures, world: World
) -> Tensor:
    seed, shown = features.detector.spec.seed, world.is_main
    vectors = features.patches(rows, patches, peer.draw, seed, f"{peer.title}: patches of {name}", shown)
    size = max(1, round(peer.share * len(vectors)))
    with Progress(f"{peer.title}: coreset of {name}", size, shown=shown) as progress:
        return coreset(vectors, size, seed, progress.advance)


def _channels(taps: tuple[int, ...], detector: Detector) -> Tensor | None:
    """The feature channels of some stages of the backbone, int64, or None for all."""
    if not taps:
        return None
    stage_of_channel = np.repeat(detector.backbone.spec.taps, detector.backbone.tap_channels)
    return torch.from_numpy(np.flatnonzero(np.isin(stage_of_channel, taps))).to(detector.class_means.device)
