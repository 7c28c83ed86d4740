"""Compare scorers on one trained model in one pass over the test images: quality, evaluations, speed and memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.comparison.choice import check_peers, choose, choose_peers
from fmad_dist.comparison.compared import FEATURES, Compared, Cost, Row, mean_speed
from fmad_dist.comparison.peer_training import KeptTensors, TrainingFeatures, for_classes_of, train_peer
from fmad_dist.comparison.table import FILES, read_comparison, write_comparison
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import DetectorSpec, locate_detector, read_spec
from fmad_dist.detector.fit import fit_scorer
from fmad_dist.evaluation.evaluate import check_complete
from fmad_dist.evaluation.labelled_images import LabelledBatch, LabelledImages, scored_images, shards_of_test_split
from fmad_dist.evaluation.provenance import evaluation_inputs
from fmad_dist.features.prepare import feature_spec
from fmad_dist.flow.noise import content_keys
from fmad_dist.jobs.folder import PARTIAL, Identity
from fmad_dist.jobs.job import Job, complete
from fmad_dist.jobs.speed import ProcessSpeed
from fmad_dist.metrics.compute import compute_results
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.data import open_data
from fmad_dist.training.fingerprint import training_fingerprint


@dataclass(frozen=True)
class ComparisonOptions:
    """What to compare and where results go."""

    config: RunConfig  # its data is tested and trains the peers: of the run of the model, or of one with the same data
    out: str  # folder for comparison.json, comparison.md and comparison.png
    model: str | None = None  # detector folder, run directory, URL of either or models:/ URI; None = that of `config`
    scorers: str = "all"  # see choice.py
    peers: str = ""  # see choice.py
    save_s: float = 60.0  # between two writes of what a rank has scored, to go on from after a kill
    overwrite: bool = False  # another comparison in `out` may be replaced


def run_comparison(options: ComparisonOptions, world: World) -> dict[str, Any] | None:
    """Every rank calls; the main rank returns the content of comparison.json, the others None.

    Raises:
        UserError: there is no detector, it was trained on other data than the peers would be, a scorer does not fit it,
            a peer is unknown or an image cannot be scored; or `out` is refused, see `JobFolder.begin`.
    """
    found = complete(ComparisonJob(options), options, world)
    if found is not None:
        print(f"comparison: {Path(options.out) / FILES[1]}", flush=True)
    return found


def comparison_key(
    spec: DetectorSpec, config: RunConfig, manifests: Mapping[str, str], scorers: str, peers: str
) -> str:
    """Stands for everything that the qualities depend on; `manifests` are digests by dataset name."""
    training = training_fingerprint(config, manifests)
    return key_of({"detector": spec.model_dump(mode="json"), "training": training, "rows": [scorers, peers]})


def comparison_inputs(
    spec: DetectorSpec, config: RunConfig, manifests: Mapping[str, str], scorers: str, peers: str
) -> dict[str, str]:
    """The same in words."""
    model = evaluation_inputs(spec, manifests)
    chosen = {"Own scorer": model.pop("Scorer"), "Scorers": scorers, "Peers": peers or "none"}
    return {**model, **chosen, "Training of peers": training_fingerprint(config, manifests)[:12]}


class ComparisonJob(Job[LabelledBatch, dict[str, Any]]):
    """One rank's part: a detector, a metric state and a cost per scorer."""

    title = "compare"
    world: World
    detector: Detector  # for the features, which the others share
    detectors: dict[str, Detector]

    def __init__(self, options: ComparisonOptions) -> None:
        self.options, self.config = options, options.config
        model = options.model or str(options.config.run_dir)
        self.model = locate_detector(model)
        self.spec = read_spec(self.model)
        self.choice = choose(options.scorers, self.spec.objective, self.spec.scorer)
        self.peers = choose_peers(options.peers)
        self.mixture = Mixture.load(self.config.data.manifests)
        check_same_data(model, self.spec, self.mixture.digests, options.peers)
        check_peers(self.peers, self.mixture, feature_spec(self.spec.features).taps)
        self.shards = shards_of_test_split(self.mixture)
        titles = [*self.choice.scorers, *(peer.title for peer in self.peers)]
        self.compared = Compared.nothing(titles, self.spec.protocol)
        inputs = (self.spec, self.config, self.mixture.digests, options.scorers, options.peers)
        self.identity = Identity("a comparison", "Scorers", comparison_key(*inputs), comparison_inputs(*inputs))

    def load(self, world: World) -> None:
        self.world = world
        self.detector = Detector.load(self.model).move_to(world.device)
        data, plain = open_data(self.config), self.detector.with_calibration(None)  # which any scorer may change
        self.detectors = {
            title: fit_scorer(plain.with_scorer(scorer), data, world) for title, scorer in self.choice.scorers.items()
        }
        if self.peers:
            features = TrainingFeatures(self.detector, self.config, data)
            kept = KeptTensors(Store(self.options.out).child(PARTIAL), self.identity.key)
            for peer in self.peers:
                self.detectors[peer.title] = self.detector.scored_by(train_peer(peer, features, world, kept))
        for costs in self.compared.costs.values():
            costs.append(Cost())

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[LabelledBatch]:
        return LabelledImages(self.mixture, self.detector.image_size, self.spec.protocol.map_size).read(batches)

    def score(self, batch: LabelledBatch) -> None:
        with self._measured(FEATURES, batch):
            x = self.detector.features(batch.images)
        keys = content_keys(batch.images)
        for title, one in self.detectors.items():
            member = for_classes_of(one, self.mixture, batch.rows)
            with self._measured(title, batch):
                found = member.score(x, keys)
            for scored in scored_images(self.mixture, batch, found):
                self.compared.states[title].update(scored)

    def _measured(self, title: str, batch: LabelledBatch) -> Any:
        return self.compared.costs[title][-1].measured(len(batch.rows), self.world.device)

    def encoded(self) -> bytes:
        return self.compared.encoded()

    def merge(self, parts: Iterable[bytes]) -> bytes:
        return self._merged(parts).encoded()

    def _merged(self, parts: Iterable[bytes]) -> Compared:
        return Compared.nothing(list(self.compared.states), self.spec.protocol).merge(parts)

    def write(self, parts: Sequence[bytes], speeds: Sequence[ProcessSpeed]) -> Sequence[str]:
        whole = self._merged(parts)
        rows = []
        for title, state in whole.states.items():
            check_complete(state, self.mixture)
            costs = whole.costs[title]
            peak = max(cost.peak_bytes for cost in costs)
            evaluations = self.detectors[title].scorer.evaluations
            rows.append(Row(title, evaluations, mean_speed(costs), peak, compute_results(state)))
        write_comparison(rows, self.choice.left_out, self.spec, whole.costs[FEATURES], self.world, self.options.out)
        return FILES

    def finished(self) -> dict[str, Any]:
        return read_comparison(self.options.out)


def check_same_data(model: str, spec: DetectorSpec, manifests: Mapping[str, str], peers: str) -> None:
    """Raises:
    UserError: peers would be trained on other datasets than the model was.
    """
    if peers and dict(manifests) != spec.manifest_digests:
        trained = ", ".join(f"{name} {digest[:12]}" for name, digest in spec.manifest_digests.items())
        given = ", ".join(f"{name} {digest[:12]}" for name, digest in manifests.items())
        raise UserError(f"--peers: {model} was trained on {trained} and the peers would be on {given}; give the same.")
