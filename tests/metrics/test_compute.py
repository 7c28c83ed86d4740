"""Image metrics against scikit-learn."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.metrics.wire import decode_state, encode_state
from fmad_dist.report.result_files import write_results
from tests.support.scored_images import PROTOCOL, MakeScored, state_of


def areas_of(images: list[ScoredImage]) -> dict[str, float]:
    """Of one class, scored by two ranks."""
    ranks = [EvaluationState(Protocol(map_size=8)) for _ in range(2)]
    for number, image in enumerate(images):
        ranks[number % 2].update(image)
    ranks[0].merge(decode_state(encode_state(ranks[1])))
    return compute_results(ranks[0]).classes["toy/disc"].areas


def test_a_part_is_as_anomalous_as_its_most_anomalous_view(make_scored: MakeScored) -> None:
    """Parts a and b are normal with highest views 0.4 and 0.7, c and d defective with 0.6 and 0.9 and views of any
    label: of the four pairs one (c, b) is in the wrong order."""
    views = [("a", 0, 0.4), ("a", 0, 0.1), ("b", 0, 0.7), ("b", 0, 0.2), ("b", 0, 0.3)]
    views += [("c", 1, 0.5), ("c", 0, 0.6), ("d", 0, 0.0), ("d", 1, 0.9)]
    images = [
        make_scored(f"{part}{number}", label, number, image_score=score, group=part)
        for number, (part, label, score) in enumerate(views)
    ]
    assert areas_of(images)["sample_auroc"] == 3 / 4
    alone = make_scored("e", 1, 9, image_score=0.8)  # a part of its own, and so is another without a group
    assert areas_of([*images, alone])["sample_auroc"] == pytest.approx(5 / 6)
    assert areas_of([*images, alone, replace(alone, sample_id="f", image_score=0.65)])["sample_auroc"] == 6 / 8


def test_without_views_or_without_both_kinds_of_parts_there_is_no_sample_auroc(make_scored: MakeScored) -> None:
    single = [make_scored(f"{n}", n % 2, n, group=f"part {n}") for n in range(6)]
    assert "sample_auroc" not in areas_of(single)
    assert "sample_auroc" not in areas_of([replace(image, group="") for image in single])
    assert "sample_auroc" not in areas_of([replace(image, group=f"part {n // 2}") for n, image in enumerate(single)])


def test_resolution_drops_only_as_far_as_the_bins_require(make_scored: MakeScored) -> None:
    images = [make_scored(f"n{i}", 0, i) for i in range(20)]  # 1280 distinct scores
    for bins, bits in ((1024, 31), (2**17, 32)):
        results = compute_results(state_of(images, Protocol(map_size=8, histogram_bins=bins)))
        assert results.classes["toy/disc"].histogram_bits <= bits
    assert results.classes["toy/disc"].histogram_bits == 32


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(UserError, match="no image was scored"):
        compute_results(EvaluationState(PROTOCOL))


def test_undefined_metrics_are_nan_with_a_reason_and_left_out_of_means(make_scored: MakeScored) -> None:
    empty = np.zeros((8, 8), dtype=bool)
    results = compute_results(
        state_of(
            [
                *(make_scored(f"good{i}", 0, i, class_name="toy/normals") for i in range(3)),
                *(make_scored(f"bad{i}", 1, i, class_name="toy/defects") for i in range(3)),
                make_scored("ok", 0, 5, class_name="toy/unmarked"),
                make_scored("hidden", 1, 6, class_name="toy/unmarked", mask=empty),
                make_scored("full", 1, 7, class_name="other/full", mask=~empty),
            ]
        )
    )
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
    results = compute_results(state_of(images))
    values = [result.metrics.aupro for result in results.classes.values()]
    assert results.mean.metrics.aupro == pytest.approx(sum(values) / 2)
    assert (results.mean.num_classes, results.mean.num_images) == (2, 32)


def test_scores_made_of_the_whole_test_set_are_scaled_per_dataset(
    images_of_two_datasets: list[ScoredImage], tmp_path: Path
) -> None:
    """FlowAD's diff+sum; two ranks and any order give the same."""
    protocol = Protocol(name="flowad", map_size=8)
    images = [replace(image, image_score=float(np.ptp(image.anomaly_map))) for image in images_of_two_datasets]
    ranks = [state_of(images[start::2][::-1], protocol) for start in (0, 1)]
    ranks[1].merge(decode_state(encode_state(ranks[0])))
    results = compute_results(ranks[1])
    assert results == compute_results(state_of(images, protocol))
    for dataset, own in (("toy", images[:16]), ("other", images[16:])):
        parts = [np.array([np.ptp(i.anomaly_map) for i in own]), np.array([i.anomaly_map.sum() for i in own])]
        expected = sum((part - part.min()) / (part.max() - part.min()) for part in parts)
        found = {row.sample_id: row.score for row in results.scores if row.sample_id.startswith(dataset)}
        np.testing.assert_allclose([found[image.sample_id] for image in own], expected, rtol=1e-5)
    write_results(results, tmp_path)
    with open(tmp_path / "scores.csv") as file:
        assert {row["sample_id"]: float(row["score"]) for row in csv.DictReader(file)} == {
            row.sample_id: row.score for row in results.scores
        }
