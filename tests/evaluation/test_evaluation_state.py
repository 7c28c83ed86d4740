"""The state: merging, serialising, refusing, undefined metrics, and the files it leads to."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fmad_dist.errors import UserError
from fmad_dist.evaluation.histogram import PixelHistogram
from fmad_dist.evaluation.panels import PANELS_PER_KIND, PanelBoard
from fmad_dist.evaluation.protocol import Protocol, mask_on_map
from fmad_dist.evaluation.results import write_results
from fmad_dist.evaluation.state import EvaluationState, ScoredImage

MakeScored = Callable[..., ScoredImage]
PROTOCOL = Protocol(map_size=8, histogram_bins=1024)


def state_of(images: list[ScoredImage], protocol: Protocol = PROTOCOL) -> EvaluationState:
    state = EvaluationState(protocol)
    for image in images:
        state.update(image)
    return state


@pytest.fixture
def images(make_scored: MakeScored) -> list[ScoredImage]:
    """Two classes of toy, 32 images of which 12 are anomalous: more pixels than bins, and tied image scores."""
    names = [f"toy/{kind}/test/{i:02d}" for kind in ("disc", "ring") for i in range(16)]
    made = [make_scored(n, int(i % 8 > 4), i, class_name=n.rsplit("/", 2)[0]) for i, n in enumerate(names)]
    return [*made[:-1], make_scored(names[-1], 1, 31, class_name="toy/ring", image_score=made[-2].image_score)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), num_ranks=st.integers(1, 5))
def test_any_order_split_and_merge_gives_the_same_bytes(images: list[ScoredImage], seed: int, num_ranks: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, num_ranks, len(images))
    order = rng.permutation(len(images))
    ranks = [state_of([images[i] for i in order if owner[i] == rank]) for rank in range(num_ranks)]
    while len(ranks) > 1:
        sent = EvaluationState.from_bytes(ranks.pop(int(rng.integers(len(ranks)))).to_bytes())
        ranks[int(rng.integers(len(ranks)))].merge(sent)
    whole = state_of(images)
    assert ranks[0].to_bytes() == whole.to_bytes()
    assert ranks[0].compute() == whole.compute()


def test_resolution_drops_only_as_far_as_the_bins_require(make_scored: MakeScored) -> None:
    images = [make_scored(f"n{i}", 0, i) for i in range(20)]  # 1280 distinct scores
    for bins, bits in ((1024, 31), (2**17, 32)):
        results = state_of(images, Protocol(map_size=8, histogram_bins=bins)).compute()
        assert results.classes["toy/disc"].histogram_bits <= bits
    assert results.classes["toy/disc"].histogram_bits == 32


def test_round_trip_keeps_everything(images: list[ScoredImage]) -> None:
    state = state_of(images)
    back = EvaluationState.from_bytes(state.to_bytes())
    assert back.to_bytes() == state.to_bytes()
    assert back.sample_ids == state.sample_ids == {image.sample_id for image in images}
    assert len(EvaluationState.from_bytes(EvaluationState(PROTOCOL).to_bytes())) == 0


def test_a_cut_state_is_refused(images: list[ScoredImage]) -> None:
    with pytest.raises(UserError, match="evaluation state"):
        EvaluationState.from_bytes(state_of(images).to_bytes()[:-40])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_name_the_sample(make_scored: MakeScored, value: float) -> None:
    state = EvaluationState(PROTOCOL)
    bad_map = np.zeros((8, 8), dtype=np.float32)
    bad_map[3, 3] = value
    for image in (make_scored("toy/a/test/7", image_score=value), make_scored("toy/a/test/7", anomaly_map=bad_map)):
        with pytest.raises(UserError, match=r"toy/a/test/7.*check the model"):
            state.update(image)
    assert len(state) == 0


def test_wrong_shapes_types_and_labels_are_refused(make_scored: MakeScored) -> None:
    state = EvaluationState(PROTOCOL)
    filled = np.ones((8, 8), dtype=bool)
    for changes, problem in [
        ({"anomaly_map": np.zeros((4, 8), dtype=np.float32)}, "map_size"),
        ({"anomaly_map": np.zeros((8, 8), dtype=np.float64)}, "float32 and bool"),
        ({"mask": filled.astype(np.uint8)}, "float32 and bool"),
        ({"mask": filled}, "label 0"),
    ]:
        with pytest.raises(UserError, match=problem):
            state.update(make_scored("x", **changes))
    assert len(state) == 0


def test_a_sample_scored_twice_is_refused(make_scored: MakeScored) -> None:
    state = state_of([make_scored("a"), make_scored("b", 1)])
    before = state.to_bytes()
    with pytest.raises(UserError, match="b: scored twice"):
        state.update(make_scored("b", 1))
    with pytest.raises(UserError, match="b: scored twice"):
        state.merge(state_of([make_scored("b", 1), make_scored("c")]))
    assert state.to_bytes() == before


def test_different_protocols_do_not_merge(make_scored: MakeScored) -> None:
    with pytest.raises(UserError, match="protocol"):
        state_of([make_scored("a")]).merge(EvaluationState(Protocol(map_size=8, fpr_limit=0.05)))


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(UserError, match="no image was scored"):
        EvaluationState(PROTOCOL).compute()


def test_undefined_metrics_are_nan_with_a_reason_and_left_out_of_means(make_scored: MakeScored) -> None:
    empty = np.zeros((8, 8), dtype=bool)
    results = state_of(
        [
            *(make_scored(f"good{i}", 0, i, class_name="toy/normals") for i in range(3)),
            *(make_scored(f"bad{i}", 1, i, class_name="toy/defects") for i in range(3)),
            make_scored("ok", 0, 5, class_name="toy/unmarked"),
            make_scored("hidden", 1, 6, class_name="toy/unmarked", mask=empty),
            make_scored("full", 1, 7, class_name="other/full", mask=~empty),
        ]
    ).compute()
    normals, defects = results.classes["toy/normals"], results.classes["toy/defects"]
    unmarked, full = results.classes["toy/unmarked"], results.classes["other/full"]
    assert math.isnan(normals.metrics.image_auroc)
    assert set(normals.undefined.values()) == {"no anomalous images", "no anomalous pixels"}
    assert len(normals.undefined) == 7
    assert defects.undefined == dict.fromkeys(["image_auroc", "image_ap", "image_f1max"], "no normal images")
    assert unmarked.num_empty_masks == 1
    assert unmarked.undefined["aupro"] == "no anomalous pixels"
    assert full.undefined["pixel_ap"] == "no normal pixels"
    assert results.datasets["toy"].metrics.aupro == defects.metrics.aupro
    assert results.datasets["toy"].metrics.image_auroc == unmarked.metrics.image_auroc
    assert results.datasets["toy"].undefined["aupro"] == 2
    assert results.mean.undefined["image_auroc"] == 3
    assert math.isnan(results.datasets["other"].metrics.pixel_auroc)


def test_means_are_over_classes(images: list[ScoredImage]) -> None:
    results = state_of(images).compute()
    values = [result.metrics.aupro for result in results.classes.values()]
    assert results.mean.metrics.aupro == pytest.approx(sum(values) / 2)
    assert (results.mean.num_classes, results.mean.num_images) == (2, 32)


def test_written_files_agree(images: list[ScoredImage], make_scored: MakeScored, tmp_path: Path) -> None:
    results = state_of([*images, make_scored("lonely", 0, 3, class_name="toy/lonely")]).compute()
    write_results(results, tmp_path / "out")
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert Protocol.model_validate(written["protocol"]) == PROTOCOL
    assert set(written) == {"protocol", "protocol_title", "protocol_note", "classes", "datasets", "mean"}
    assert written["protocol_title"] == "fmad-2026 with map_size=8, histogram_bins=1024"
    pixel = [written["classes"]["toy/disc"]["intervals"][name] for name in ("pixel_auroc", "pixel_ap", "aupro")]
    assert all(0 <= low < high <= 1 for low, high in pixel)
    for kind in ("datasets", "classes"):
        for values in written[kind].values():
            for name, (low, high) in values["intervals"].items():
                assert low <= values[name] <= high, name
    assert written["classes"]["toy/lonely"]["aupro"] is None
    assert written["classes"]["toy/lonely"]["undefined"]["aupro"] == "no anomalous pixels"
    assert written["classes"]["toy/disc"]["num_anomalous"] == 6
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    types = [name for kind in ("disc", "lonely", "ring") for name in (f"toy/{kind}", f"toy/{kind}/scratch")]
    assert [row["name"] for row in rows] == [name for name in types if "lonely/" not in name] + ["toy", "mean"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["toy/lonely"]["image_auroc"] == ""
    assert by_name["toy/disc"]["aupro@0.05"] == by_name["toy/disc/scratch"]["aupro@0.05"] != ""
    assert written["classes"]["toy/disc"]["defects"]["scratch"]["aupro"] == written["classes"]["toy/disc"]["aupro"]
    assert float(rows[-1]["aupro"]) == written["mean"]["aupro"]
    scores = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert {row["sample_id"]: float(row["score"]) for row in scores} == {s.sample_id: s.score for s in results.scores}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "results.json", "scores.csv"]


def test_panels_are_the_extremes_by_score_then_id(images: list[ScoredImage]) -> None:
    board = state_of(images).classes["toy/disc"].board
    ours = [image for image in images if image.class_name == "toy/disc"]
    for label, highest, lowest in ((1, board.best(), board.missed()), (0, board.false_alarms(), board.calm())):
        scores = sorted(image.image_score for image in ours if image.label == label)
        assert [panel.score for panel in lowest] == scores[:PANELS_PER_KIND]
        assert [panel.score for panel in highest] == scores[: -PANELS_PER_KIND - 1 : -1]
    assert len(board.panels) <= 4 * PANELS_PER_KIND


def test_panels_of_equal_scores_are_chosen_by_id(make_scored: MakeScored) -> None:
    tied = [make_scored(f"n{i}", 0, i, image_score=1.0) for i in range(10)]
    board: PanelBoard = state_of(tied[::-1]).classes["toy/disc"].board
    assert list(board.panels) == ["n0", "n1", "n2"]


def test_48_full_classes_take_less_than_100_megabytes() -> None:
    rng = np.random.default_rng(0)
    histogram = PixelHistogram(Protocol().histogram_bins)
    mask = np.zeros((256, 256), dtype=bool)
    mask[100:120, 100:140] = True
    for _ in range(40):
        histogram.add(rng.normal(size=mask.shape).astype(np.float32), mask, 8)
    assert histogram.bins.keys.size > histogram.max_bins / 2
    assert 48 * histogram.bins.num_bytes < 100 * 2**20


def test_masks_are_binarised_by_not_zero_and_joined() -> None:
    ids = np.zeros((4, 4), dtype=np.uint8)
    ids[0, 0] = 1
    other = np.zeros((2, 2), dtype=np.uint16)
    other[1, 1] = 300
    joined = mask_on_map([ids, other], 4)
    assert joined.sum() == 5
    assert joined[0, 0]
    assert joined[2:, 2:].all()
    assert mask_on_map([], 4).sum() == 0
    assert mask_on_map([ids], 8).sum() == 4


def test_protocol_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="fpr_limits"):
        Protocol(fpr_limits=0.3)  # type: ignore[call-arg]
