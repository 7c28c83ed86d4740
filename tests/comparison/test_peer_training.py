"""Which peers run, and what memory banks are built from: training normals alone, whoever reads them."""

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.comparison.bank import BankScorer, Patches
from fmad_dist.comparison.choice import BankConfig, CFlowConfig, PeerConfig, check_peers, choose_peers
from fmad_dist.comparison.peer_training import KeptTensors, TrainingFeatures, for_classes_of, train_peer
from fmad_dist.config.run import DataConfig, FeatureConfig, RunConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.features.prepare import prepare_features
from fmad_dist.scoring.interface import Scorer
from fmad_dist.storage import Store
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.data import open_data
from tests.support.fake_world import FakeWorld
from tests.support.small_parts import MakeDetector, build_dataset

TAPS, GRID, SIDE = (1, 2), 4, 64
CPU = torch.device("cpu")


def opened(url: str, make_detector: MakeDetector, cache: Path | None = None, **data: object) -> TrainingFeatures:
    """The training features of a random detector of this dataset, computed ahead if `cache` is given."""
    features = FeatureConfig(image_size=SIDE, grid=GRID, taps=TAPS, cache=cache and str(cache))
    config = RunConfig(data=DataConfig(manifests=(url,), workers=0, **data), features=features)
    training = open_data(config)
    if cache is not None:
        prepare_features(config, training, World(), CPU)
    names = tuple(training.mixture.class_names)
    detector = make_detector((1.0,) * len(names), class_names=names)
    digest = detector.backbone.weights_digest()
    detector.spec = detector.spec.model_copy(update={"backbone_digest": digest})
    found = TrainingFeatures(detector, config, training)
    assert found.cached == (cache is not None)
    return found


@pytest.fixture(scope="module")
def tiny(tiny_url: str, make_detector: MakeDetector) -> TrainingFeatures:
    """Three classes with 4, 6 and 11 images that train. Read only."""
    return opened(tiny_url, make_detector)


def trained(peer: PeerConfig, features: TrainingFeatures, world: World) -> Scorer:
    """The peer, with nothing kept from before."""
    return train_peer(peer, features, world, KeptTensors(Store(f"memory://{uuid.uuid4()}"), "key"))


def image_scores(features: TrainingFeatures, peer: BankConfig, rows: np.ndarray) -> tuple[Tensor, Detector]:
    """The scores of stored images by a peer, as a comparison asks for them."""
    detector = features.detector.scored_by(trained(peer, features, World()))
    source, mixture = features.data.images, features.data.mixture
    images = source.stack([source.read(int(row)) for row in rows])
    member = for_classes_of(detector, mixture, tuple(rows.tolist()))
    return member.score(member.features(images), [0] * len(rows)).maps, detector


def test_choice_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_peers("") == ()
    assert choose_peers("cflow, cflow:steps=20") == (CFlowConfig(), CFlowConfig(steps=20))
    chosen = choose_peers("bank,bank_pooled:share=0.01:taps=[1]")
    assert chosen == (BankConfig(), BankConfig(name="bank_pooled", share=0.01, taps=(1,)))
    titles = [peer.title for peer in (*chosen, CFlowConfig(steps=20))]
    assert titles == ["bank (peer)", "bank_pooled (peer) share=0.01 taps=(1,)", "cflow (peer) steps=20"]
    monkeypatch.setattr("fmad_dist.comparison.choice.find_spec", lambda name: None)
    assert choose_peers("bank") == (BankConfig(),)  # needs no package
    with pytest.raises(UserError, match=r"anomalib, which is missing; install fmad-dist\[peers\]"):
        choose_peers("cflow")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("patchcore", "'patchcore' is not known; there is bank, bank_pooled, cflow"),
        ("cflow:steps=0", "cflow: steps: Input should be greater than or equal to 1"),
        ("cflow:lr=1", "cflow has no option 'lr'; it takes steps"),
        ("cflow:name=bank", "cflow has no option 'name'"),
        ("cflow:steps", "write options as name:key=value"),
        ("bank:share=2", "bank: share: Input should be less than or equal to 1"),
        ("bank:side=2", "bank: side: Input should be 1, 3 or 5"),
        ("bank_pooled:steps=2", "it takes share, draw, neighbours, side, taps"),
        ("bank:taps=5", "bank: taps: Input should be a valid tuple"),
    ],
)
def test_wrong_peers_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^--peers: .*{sentence}"):
        choose_peers(text)


def test_banks_hold_the_patches_of_training_normals_alone(tiny: TrainingFeatures) -> None:
    """With share 1, against features computed image by image; held-out normals are not among them."""
    split, mixture = tiny.data.split, tiny.data.mixture
    assert [int((mixture.class_numbers[split.train] == n).sum()) for n in range(3)] == [4, 6, 11]
    images = tiny.data.images
    per_class = trained(BankConfig(share=1.0, side=1), tiny, World())
    pooled = trained(BankConfig(name="bank_pooled", share=1.0, side=1), tiny, World())
    assert isinstance(per_class, BankScorer)
    assert isinstance(pooled, BankScorer)
    found = [bank.vectors + bank.centre for bank in (*per_class.banks, *pooled.banks)]
    rows = [split.train[mixture.class_numbers[split.train] == n] for n in range(3)] + [split.train]
    for vectors, own in zip(found, rows, strict=True):
        expected = [tiny.detector.features(images.read(int(row))[None])[0].flatten(1).T for row in own]
        torch.testing.assert_close(vectors, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bank", "bank_pooled"])
def test_training_images_score_zero_and_held_out_ones_do_not(tiny: TrainingFeatures, name: str) -> None:
    peer, split = BankConfig(name=name, share=1.0), tiny.data.split
    assert image_scores(tiny, peer, split.train)[0].abs().max() == 0
    maps, detector = image_scores(tiny, peer, split.held_out)
    assert (maps.flatten(1).amax(dim=1) > 0.1).all()
    assert detector.scorer.evaluations == 0


def test_one_class_makes_pooled_and_per_class_the_same(tmp_path: Path, make_detector: MakeDetector) -> None:
    features = opened(build_dataset(tmp_path, "one", {"bolt": 6}), make_detector)
    rows = features.data.mixture.rows("test")
    one, other = (image_scores(features, BankConfig(name=n, share=0.3), rows)[0] for n in ("bank", "bank_pooled"))
    assert one.max() > 0
    assert torch.equal(one, other)


@pytest.mark.parametrize(("draw", "count"), [(7, 7), (50, 21 * 2), (10_000, 21 * GRID**2)])
def test_drawn_patches_do_not_depend_on_cache_or_batches(
    draw: int,
    count: int,
    tiny: TrainingFeatures,
    tiny_url: str,
    tmp_path: Path,
    make_detector: MakeDetector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn(features: TrainingFeatures, draw: int, seed: int = 0) -> Tensor:
        return features.patches(tiny.data.split.train, Patches(3), draw, seed, "patches", shown=False)

    found, everything = drawn(tiny, draw), drawn(tiny, 10_000)
    assert len(found) == count
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in everything.tolist()}
    assert torch.equal(found, drawn(tiny, draw, seed=1)) == (draw == 10_000)
    monkeypatch.setattr(TrainingFeatures, "_chunk", 3)
    assert torch.equal(found, drawn(tiny, draw))
    assert torch.equal(found, drawn(opened(tiny_url, make_detector, tmp_path / "features"), draw))


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_build_a_share_of_the_banks_each(size: int, tiny: TrainingFeatures) -> None:
    """What each of `size` ranks would send is what one process builds, and every bank is built by one rank."""
    alone = trained(BankConfig(), tiny, World())
    assert isinstance(alone, BankScorer)
    for rank in range(size):
        sent: list[tuple[int, Tensor]] = []

        def send(item: Tensor, source: int, sent: list[tuple[int, Tensor]] = sent) -> Tensor:
            sent.append((source, item))
            return item if item.numel() else torch.zeros(1, 1)

        trained(BankConfig(), tiny, FakeWorld(rank, size, sent=send))
        assert [source for source, _ in sent] == [number % size for number in range(3)]
        for number, (source, item) in enumerate(sent):
            assert (item.numel() == 0) == (source != rank)
            if item.numel():
                assert torch.equal(item - item.mean(dim=0), alone.banks[number].vectors)


def test_banks_that_an_earlier_start_built_are_not_built_again(
    tiny: TrainingFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another number of ranks; another job, and another peer of the same job, build their own."""
    kept = KeptTensors(Store(tmp_path), "key")
    first = train_peer(BankConfig(), tiny, World(), kept)
    monkeypatch.setattr(TrainingFeatures, "patches", lambda *_: pytest.fail("patches were drawn"))
    again = train_peer(BankConfig(), tiny, World(), kept)
    assert isinstance(first, BankScorer)
    assert isinstance(again, BankScorer)
    for one, other in zip(first.banks, again.banks, strict=True):
        assert torch.equal(one.vectors, other.vectors)
    for peer, key in ((BankConfig(), "another"), (BankConfig(share=0.2), "key")):
        with pytest.raises(pytest.fail.Exception):
            train_peer(peer, tiny, World(), KeptTensors(Store(tmp_path), key))


def test_only_some_stages(tiny: TrainingFeatures) -> None:
    counts = tiny.detector.backbone.tap_channels
    for tap, start in zip(TAPS, (0, counts[0]), strict=True):
        scorer = trained(BankConfig(taps=(tap,), side=1, share=1.0), tiny, World())
        whole = trained(BankConfig(side=1, share=1.0), tiny, World())
        assert isinstance(scorer, BankScorer)
        assert isinstance(whole, BankScorer)
        width = counts[TAPS.index(tap)]
        assert torch.equal(scorer.banks[0].vectors, whole.banks[0].vectors[:, start : start + width])


def test_peers_that_the_model_or_the_data_cannot_serve(tiny: TrainingFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = tiny.data.mixture
    check_peers([BankConfig(taps=(2,)), CFlowConfig()], mixture, TAPS)
    with pytest.raises(UserError, match=r"bank: taps \[1, 3\]: this model's features have \[1, 2\]"):
        check_peers([BankConfig(taps=(1, 3))], mixture, TAPS)
    row = int(mixture.rows("test")[1])
    numbers = mixture.class_numbers.copy()
    numbers[row] = -1
    monkeypatch.setitem(mixture.__dict__, "class_numbers", numbers)
    check_peers([BankConfig(name="bank_pooled"), CFlowConfig()], mixture, TAPS)
    with pytest.raises(UserError, match=f"bank needs training images of the class of {mixture.sample_id(row)}"):
        check_peers([BankConfig(name="bank_pooled"), BankConfig()], mixture, TAPS)


def test_only_banks_per_class_are_for_classes_of(tiny: TrainingFeatures) -> None:
    rows = tuple(tiny.data.mixture.rows("test")[:3].tolist())
    for name in ("bank", "bank_pooled"):
        detector = tiny.detector.scored_by(trained(BankConfig(name=name), tiny, World()))
        told = for_classes_of(detector, tiny.data.mixture, rows)
        assert (told is detector) == (name == "bank_pooled")
    assert for_classes_of(tiny.detector, tiny.data.mixture, rows) is tiny.detector


class Damaged(SampleSource):
    """A source in which some images are damaged."""

    def __init__(self, sound: SampleSource, mixture: Mixture, victims: set[int]) -> None:
        self.sound, self.mixture, self.victims = sound, mixture, victims
        self.stack = sound.stack  # type: ignore[method-assign]

    def fetch(self, indices: Sequence[int]) -> tuple[Sequence[int], object]:
        return indices, self.sound.fetch(indices)

    def decode(self, fetched: tuple[Sequence[int], object]) -> list[Tensor | BadSample]:
        found = self.sound.decode(fetched[1])
        return [self._bad(n) if n in self.victims else one for n, one in zip(fetched[0], found, strict=True)]

    def _bad(self, index: int) -> BadSample:
        return BadSample(self.mixture.sample_id(index), "shard", "is damaged", "restore it")


@pytest.mark.parametrize("allowed", [0, 1])
def test_damaged_images_are_left_out_and_bounded(
    allowed: int, tiny_url: str, make_detector: MakeDetector, capfd: pytest.CaptureFixture[str]
) -> None:
    features = opened(tiny_url, make_detector, max_bad_samples=allowed)
    data = features.data
    features.source = Damaged(features.source, data.mixture, {int(data.split.train[2])})
    peer = BankConfig(name="bank_pooled", share=1.0)
    if not allowed:
        with pytest.raises(UserError, match=r"data\.max_bad_samples: 0 damaged samples allowed"):
            trained(peer, features, World())
        return
    scorer = trained(peer, features, World())
    assert isinstance(scorer, BankScorer)
    assert len(scorer.banks[0].vectors) == 20 * GRID**2
    trained(BankConfig(), features, World())  # the same image again does not count twice
    assert capfd.readouterr().err.count("left out damaged sample 1 of at most 1") == 1
    features.source = Damaged(data.images, data.mixture, set(data.split.train.tolist()))
    features.max_bad_samples = 100
    with pytest.raises(UserError, match="patches of all classes: all 21 training images are damaged"):
        trained(peer, features, World())
