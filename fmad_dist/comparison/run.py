"""Every scorer on one trained model in one pass over the test images: quality, evaluations, speed and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from fmad_dist.comparison.choice import Choice, choose
from fmad_dist.comparison.cost import Cost, mean_speed
from fmad_dist.comparison.peer_training import told_classes, train_peer
from fmad_dist.comparison.peers import PeerConfig, check_peers, choose_peers
from fmad_dist.comparison.table import FILES, Row, write_comparison
from fmad_dist.comparison.training_features import TrainingFeatures
from fmad_dist.config import RunConfig
from fmad_dist.detector import Detector
from fmad_dist.detector_files import DetectorSpec
from fmad_dist.errors import UserError
from fmad_dist.evaluation.evaluator import merge_states, own_test_batches, scored_images
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.flow.noise import content_keys
from fmad_dist.scoring.held_out import fit_scorer
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of, write_stamp
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.data import open_data
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.fingerprint import training_fingerprint
from fmad_dist.world import World

PEER_TIMEOUT = timedelta(hours=24)  # one process trains a peer, others wait


@dataclass(frozen=True)
class Comparison:
    """One rank's part: a detector, a metric state and a cost per scorer, and the cost of the features they share."""

    detectors: dict[str, Detector]
    states: dict[str, EvaluationState]
    costs: dict[str, Cost]
    features: Cost


def run_comparison(config: RunConfig, model: str | Path, scorers: str, peers: str, out: Path, world: World) -> None:
    """Every rank calls; the main one writes `comparison.json`, `comparison.md` and `comparison.png` to `out`. `config`
    says what the peers are trained on: the run of the `model`, or one with the same data.

    Raises:
        UserError: there is no detector, it was trained on other data than the peers would be, a scorer does not fit it,
            a peer is unknown or an image cannot be scored.
    """
    detector = Detector.load(model).place(world.device)
    choice = choose(scorers, detector.spec.objective, detector.spec.scorer)
    chosen = choose_peers(peers)
    mixture = Mixture.load(config.data.manifests)
    check_same_data(model, detector.spec, mixture.digests, peers)
    check_peers(chosen, mixture, detector.backbone.spec.taps)
    world.join(timeout=PEER_TIMEOUT if chosen else None)
    part = _score(detector, choice, chosen, config, mixture, world)
    gathered = gather_objects(({name: state.to_bytes() for name, state in part.states.items()}, part.costs))
    world.leave()
    if not world.is_main:
        return
    rows = []
    for name, member in part.detectors.items():
        results = merge_states([states[name] for states, _ in gathered], mixture).compute()
        costs = [costs[name] for _, costs in gathered]
        speed = mean_speed(costs)
        peak = max(cost.peak_bytes for cost in costs)
        rows.append(Row(name, member.scorer.evaluations, speed, peak, results))
    write_comparison(rows, choice.left_out, detector.spec, part.features.images_per_s, world, out)
    key = comparison_key(detector.spec, config, mixture.digests, scorers, peers)
    write_stamp(Store(out), key, {"Scorers": scorers, "Peers": peers}, FILES)


def comparison_key(
    spec: DetectorSpec, config: RunConfig, manifests: Mapping[str, str], scorers: str, peers: str
) -> str:
    """Stands for everything that the qualities depend on; `manifests` are digests by dataset name."""
    training = training_fingerprint(config, manifests)
    return key_of({"detector": spec.model_dump(mode="json"), "training": training, "rows": [scorers, peers]})


def check_same_data(model: str | Path, spec: DetectorSpec, manifests: Mapping[str, str], peers: str) -> None:
    """Raises:
    UserError: peers would be trained on other datasets than the model was.
    """
    if peers and dict(manifests) != spec.manifest_digests:
        trained = ", ".join(f"{name} {digest[:12]}" for name, digest in spec.manifest_digests.items())
        given = ", ".join(f"{name} {digest[:12]}" for name, digest in manifests.items())
        raise UserError(f"--peers: {model} was trained on {trained} and the peers would be on {given}; give the same.")


def _score(
    detector: Detector, choice: Choice, peers: Sequence[PeerConfig], config: RunConfig, mixture: Mixture, world: World
) -> Comparison:
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    detectors = {name: detector.sibling(scorer) for name, scorer in choice.scorers.items()}
    data = open_data(config)
    for member in detectors.values():
        fit_scorer(member, data, world, gather_objects)
    if peers:
        features = TrainingFeatures(detector, config, data)
        detectors |= {peer.title: detector.scored_by(train_peer(peer, features, world)) for peer in peers}
    protocol = detector.spec.protocol
    part = Comparison(
        detectors, {n: EvaluationState(protocol) for n in detectors}, {n: Cost() for n in detectors}, Cost()
    )
    for batch in own_test_batches(detector, mixture, world, workers=0, title="compare"):
        with part.features.measured(len(batch.rows), world.device):
            x = detector.features(batch.images)
        keys = content_keys(batch.images)
        for name, one in detectors.items():
            member = told_classes(one, mixture, batch.rows)
            with part.costs[name].measured(len(batch.rows), world.device):
                found = member.score(x, keys)
            for scored in scored_images(mixture, batch, found):
                part.states[name].update(scored)
    return part
