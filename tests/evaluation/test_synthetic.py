"""The synthetic set: held-out normals only, and the same images and metrics for any number of processes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.evaluation.synthetic import GOOD, SyntheticSet
from fmad_dist.flaws.photograph import KINDS
from fmad_dist.follow.share import Share
from fmad_dist.stream.mixture import Mixture, TrainSplit, split_normals
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sources import ImageSource
from fmad_dist.world import World

if TYPE_CHECKING:
    from fmad_dist.detector import Detector


@pytest.fixture(scope="module")
def data(tiny_mixture: Mixture) -> SimpleNamespace:
    split = split_normals(tiny_mixture, 0.4)
    return SimpleNamespace(mixture=tiny_mixture, split=split, images=ImageSource(tiny_mixture, 64))


def test_only_held_out_normals_are_ever_used(data: SimpleNamespace) -> None:
    images = SyntheticSet(data, per_class=100)
    assert images.rows.tolist() == data.split.held_out.tolist()
    used = {image.sample_id.partition("+")[0] for row in images.rows.tolist() for image in images.images(row)}
    mixture = data.mixture
    assert used == set(mixture.sample_ids(data.split.held_out))
    assert not used & set(mixture.sample_ids(mixture.rows("test")))
    assert not used & set(mixture.sample_ids(data.split.train))


def test_a_split_with_test_images_is_refused(data: SimpleNamespace) -> None:
    wrong = SimpleNamespace(mixture=data.mixture, split=TrainSplit(data.split.train, data.mixture.rows("test")))
    with pytest.raises(AssertionError):
        SyntheticSet(wrong, per_class=4)


def test_each_normal_is_there_as_it_is_and_with_every_kind(data: SimpleNamespace) -> None:
    images = SyntheticSet(data, per_class=2)
    assert [images.class_name(row) for row in images.rows.tolist()] == [
        f"tiny/{name}" for name in ("bolt", "nut", "washer") for _ in range(2)
    ]
    row = int(images.rows[0])
    found = images.images(row)
    stored = data.images.read(row).permute(1, 2, 0).numpy()
    assert [image.kind for image in found] == [GOOD, *KINDS]
    assert np.array_equal(found[0].pixels, stored)
    assert not found[0].mask.any()
    for image in found[1:]:
        assert image.sample_id == f"{found[0].sample_id}+{image.kind}"
        assert np.array_equal(image.pixels[~image.mask], stored[~image.mask])
    again = SyntheticSet(data, per_class=100).images(row)  # neither the choice nor what was drawn before matters
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found, again, strict=True))


def test_the_same_results_on_1_2_and_3_processes(
    data: SimpleNamespace, make_detector: Callable[..., "Detector"]
) -> None:
    detector = make_detector((1.0, 1.0, 1.0))
    found = []
    for size in (1, 2, 3):
        states = []
        shares = [Share(SyntheticSet(data, per_class=2), World(rank=rank, size=size)) for rank in range(size)]
        assert len({share.num_rounds for share in shares}) == 1
        for share in shares:
            state = EvaluationState(detector.spec.protocol)
            for number in range(share.num_rounds):
                share.score(number, detector, state)
            states.append(state)
        merged = states.pop()
        for state in states:
            merged.merge(state)
        assert len(merged) == 3 * 2 * (1 + len(KINDS))
        found.append(merged.to_bytes())
    assert found[0] == found[1] == found[2]
    results = EvaluationState.from_bytes(found[0]).compute()
    assert set(results.classes["tiny/bolt"].defects) == set(KINDS)


def test_features_are_computed_once(data: SimpleNamespace, make_detector: Callable[..., "Detector"]) -> None:
    detector = make_detector((1.0, 1.0, 1.0))
    share = Share(SyntheticSet(data, per_class=1), World())
    states = []
    for _ in range(2):
        states.append(EvaluationState(detector.spec.protocol))
        for number in range(share.num_rounds):
            share.score(number, detector, states[-1])
        share.images.images = None  # type: ignore[assignment,method-assign]  # nothing is drawn again
    assert states[0].to_bytes() == states[1].to_bytes()


def test_a_damaged_image_is_left_out_and_told(
    data: SimpleNamespace, make_detector: Callable[..., "Detector"], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = SyntheticSet(data, per_class=1)
    victim, draw = int(images.rows[1]), images.images

    def damaged(row: int) -> list:
        if row == victim:
            raise BadSample("tiny/nut/train/000", "shard", "is cut")
        return draw(row)

    monkeypatch.setattr(images, "images", damaged)
    share, state = Share(images, World()), EvaluationState(make_detector((1.0,)).spec.protocol)
    for number in range(share.num_rounds):
        share.score(number, make_detector((1.0,)), state)
    assert list(share.bad) == [victim]
    assert len(state) == 2 * (1 + len(KINDS))
