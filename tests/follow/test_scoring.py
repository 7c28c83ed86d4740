"""A checkpoint's scores: the same for any number of processes, of images that are drawn once."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from fmad_dist.base.world import World
from fmad_dist.defects.photograph import KINDS
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.evaluate import merged_state
from fmad_dist.follow.scoring import SyntheticScoring
from fmad_dist.follow.synthetic import SyntheticSet
from fmad_dist.jobs.scoring import deal, score_shards
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.wire import encode_state
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.interruption import Preempted, StopRequest


class Stop:
    """A request to stop that comes after so many questions."""

    def __init__(self, after: int = 1000) -> None:
        self.left, self.asked = after, 0

    def agreed(self) -> bool:
        self.asked += 1
        return self.asked > self.left


def scoring_of(images: SyntheticSet, world: World | None = None, stop: Stop | None = None) -> SyntheticScoring:
    return SyntheticScoring(images, world or World(), cast(StopRequest, stop or Stop()))


def score(scoring: SyntheticScoring, detector: Detector, world: World | None = None) -> bytes:
    """The encoded state of one rank."""
    scoring.start(detector, "step 1")
    one = world or World()
    return score_shards(scoring, deal(len(scoring.shards), frozenset(), one.rank, one.size), one).data


def test_the_same_results_on_1_2_and_4_processes(data: SimpleNamespace, make_detector: Callable[..., Detector]) -> None:
    detector = make_detector((1.0, 1.0, 1.0))
    found = []
    for size in (1, 2, 4):
        parts, asked = [], set()
        for rank in range(size):
            stop, world = Stop(), World(rank=rank, size=size)
            scoring = scoring_of(SyntheticSet(data, per_class=2), world, stop)
            parts.append(score(scoring, detector, world))
            asked.add(stop.asked)
        assert len(asked) == 1, "ranks agree on a stop together, or wait for each other for ever"
        merged = merged_state(parts, detector.spec.protocol)
        assert len(merged) == 3 * 2 * (1 + len(KINDS))
        found.append(encode_state(merged))
    assert found[0] == found[1] == found[2]
    results = compute_results(merged)
    assert set(results.classes["tiny/bolt"].defects) == set(KINDS)


def test_features_are_computed_once(data: SimpleNamespace, make_detector: Callable[..., Detector]) -> None:
    detector = make_detector((1.0, 1.0, 1.0))
    scoring = scoring_of(SyntheticSet(data, per_class=1))
    first = score(scoring, detector)
    scoring.images.images = None  # type: ignore[assignment,method-assign]  # nothing is drawn again
    assert score(scoring, detector) == first


def test_a_request_to_stop_is_met_between_two_normals(
    data: SimpleNamespace, make_detector: Callable[..., Detector]
) -> None:
    scoring = scoring_of(SyntheticSet(data, per_class=1), stop=Stop(after=1))
    with pytest.raises(Preempted):
        score(scoring, make_detector((1.0,)))
    assert len(scoring.state) == 2 * (1 + len(KINDS))


def test_a_damaged_image_is_left_out_and_told(
    data: SimpleNamespace, make_detector: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = SyntheticSet(data, per_class=1)
    victim, draw = int(images.rows[1]), images.images

    def damaged(row: int) -> list:
        if row == victim:
            raise BadSample("tiny/nut/train/000", "shard", "is cut")
        return draw(row)

    monkeypatch.setattr(images, "images", damaged)
    scoring = scoring_of(images)
    score(scoring, make_detector((1.0,)))
    assert list(scoring.bad) == [victim]
    assert len(scoring.state) == 2 * (1 + len(KINDS))
