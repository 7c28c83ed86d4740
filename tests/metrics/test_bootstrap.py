"""Bootstrap intervals: against exact metrics of the same draws, their coverage, and what leaves them unchanged."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fmad_dist.metrics import bootstrap
from fmad_dist.metrics.bootstrap import (
    IMAGE_BINS,
    Draws,
    ImagePixels,
    Intervals,
    class_draws,
    image_pixels,
    intervals,
    mean_draws,
    pixel_table,
)
from fmad_dist.metrics.histogram import MapPixels
from fmad_dist.metrics.results import Metrics, ScoreRow
from tests.support.pixel_maps import TRANSFORMS, exact_metrics, smooth_maps

METRICS = Metrics(image_auroc=0.7, image_ap=0.7, pixel_auroc=0.7, pixel_ap=0.7, aupro=0.7)


def rows_of(scores: np.ndarray, labels: np.ndarray, class_name: str = "toy/disc") -> list[ScoreRow]:
    pairs = zip(scores.tolist(), labels.tolist(), strict=True)
    return [ScoreRow(f"{i:04d}", class_name, label, "good", score) for i, (score, label) in enumerate(pairs)]


def pixels_of(rows: list[ScoreRow], maps: np.ndarray, masks: np.ndarray) -> dict[str, ImagePixels]:
    scored = zip(rows, maps.astype(np.float32), masks, strict=True)
    return {row.sample_id: image_pixels(MapPixels.of(one, mask, 8)) for row, one, mask in scored}


def drawn_images(monkeypatch: pytest.MonkeyPatch, num_draws: int) -> list[np.ndarray]:
    """Let a bootstrap make so many draws, and collect how often each image of a part was taken, part by part."""
    taken: list[np.ndarray] = []
    original = bootstrap._repeats

    def recorded(stream: np.random.Generator, size: int) -> np.ndarray:
        taken.append(original(stream, size))
        return taken[-1]

    monkeypatch.setattr(bootstrap, "DRAWS", num_draws)
    monkeypatch.setattr(bootstrap, "BLOCK", num_draws)
    monkeypatch.setattr(bootstrap, "_repeats", recorded)
    return taken


def test_image_metrics_of_every_draw_are_what_scikit_learn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the class and of both types of defect; scores have ties."""
    taken = drawn_images(monkeypatch, 20)
    rng = np.random.default_rng(0)
    kinds = ["good"] * 13 + ["crack"] * 5 + ["hole"] * 4
    labels = np.array([kind != "good" for kind in kinds]).astype(int)
    scores = np.round(rng.normal(size=22) + labels, 1)
    rows = [ScoreRow(f"{i:02d}", "toy/a", int(labels[i]), kinds[i], float(scores[i])) for i in range(22)]
    found, of_types = class_draws([rows[i] for i in rng.permutation(22)], {}, 0.3)
    normal, *parts = taken
    assert set(found) == {"image_auroc", "image_ap"}
    for part, draws, images in zip(
        parts, (found, of_types["crack"], of_types["hole"]), (slice(13, 22), slice(13, 18), slice(18, 22)), strict=True
    ):
        chosen = np.r_[np.arange(13), np.arange(22)[images]]
        values = roc_auc_score(labels[chosen], scores[chosen]), average_precision_score(labels[chosen], scores[chosen])
        for draw in range(20):
            image = np.repeat(chosen, np.r_[normal[draw], part[draw]].astype(int))
            expected = (
                roc_auc_score(labels[image], scores[image]),
                average_precision_score(labels[image], scores[image]),
            )
            assert draws["image_auroc"][draw] + values[0] == pytest.approx(expected[0])
            assert draws["image_ap"][draw] + values[1] == pytest.approx(expected[1])


@pytest.mark.parametrize("name", ["smooth", "exponential", "likelihood", "tied", "clipped", "tiny"])
def test_pixel_metrics_of_every_draw_are_those_of_the_repeated_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What few bins miss is a small part of how far the draws lie apart."""
    taken = drawn_images(monkeypatch, 12)
    maps, masks = smooth_maps(num_maps=18, size=64, seed=3)
    maps = TRANSFORMS[name](maps)
    labels = masks.any(axis=(1, 2)).astype(int)
    rows = rows_of(maps.max(axis=(1, 2)), labels)
    draws, _ = class_draws(rows, pixels_of(rows, maps, masks), 0.3)
    repeats = np.zeros((12, 18), dtype=int)
    repeats[:, labels == 0], repeats[:, labels == 1] = taken
    images = [np.repeat(np.arange(18), repeats[draw]) for draw in range(12)]
    exact = np.array([exact_metrics(maps[image], masks[image]) for image in images]) - exact_metrics(maps, masks)
    for metric, expected in zip(("pixel_auroc", "pixel_ap", "aupro"), exact[:, [0, 1, 3]].T, strict=True):
        assert np.abs(draws[metric] - expected).max() < 0.15 * expected.std(), metric
        assert np.abs(draws[metric] - expected).mean() < 0.06 * expected.std(), metric


def test_intervals_do_not_depend_on_the_order_and_hold_the_true_value_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    labels, held = np.repeat([0, 1], 40), 0
    for trial in range(100):
        rows = rows_of(rng.normal(size=80) + labels, labels, f"toy/{trial}")
        value = roc_auc_score(labels, [row.score for row in rows])
        low, high = intervals(Metrics(image_auroc=value, image_ap=0.5), class_draws(rows, {}, 0.3)[0])["image_auroc"]
        again = intervals(Metrics(image_auroc=value, image_ap=0.5), class_draws(rows[::-1], {}, 0.3)[0])
        assert again["image_auroc"] == (low, high)
        held += low <= 0.7602 <= high  # Phi(1 / sqrt 2)
    assert 88 <= held <= 99


def test_pixel_intervals_know_that_pixels_of_an_image_belong_together() -> None:
    """Every image has a level of its own; drawing single pixels would claim to know the AUROC far too well."""
    rng = np.random.default_rng(2)
    mask, held, widths = np.zeros((8, 8), dtype=bool), 0, []
    mask[2:6, 2:6] = True
    for trial in range(40):
        labels = np.repeat([0, 1], 30)
        levels = rng.normal(size=60)[:, None, None]
        masks = mask & (labels == 1)[:, None, None]
        maps = levels + 0.2 * rng.normal(size=(60, 8, 8)) + masks
        rows = rows_of(maps.max(axis=(1, 2)), labels, f"toy/{trial}")
        value = roc_auc_score(masks.ravel(), maps.ravel())
        metrics = Metrics(0.7, 0.7, 0.7, value, 0.7, 0.7, 0.7)
        low, high = intervals(metrics, class_draws(rows, pixels_of(rows, maps, masks), 0.3)[0])["pixel_auroc"]
        held += low <= true_auroc() <= high
        widths.append(high - low)
    assert 34 <= held <= 40
    assert np.mean(widths) > 0.1


def true_auroc() -> float:
    """P(anomalous > normal pixel) when the normal pixels are 30 * 64 + 30 * 48 and an image's levels are its own."""
    rng = np.random.default_rng(9)
    anomalous = 1 + rng.normal(size=10**6) * np.sqrt(1.04)
    normal = rng.normal(size=10**6) * np.sqrt(1.04)
    same = 1 / 30 * 48 / (48 + 64)  # share of pairs within one image, whose level cancels
    return float((1 - same) * np.mean(anomalous > normal) + same)


def test_monotone_transforms_change_no_interval() -> None:
    maps, masks = smooth_maps(num_maps=18, size=64, seed=7)
    maps = np.round(maps * 2**12) / 2**12
    labels = masks.any(axis=(1, 2)).astype(int)
    found: list[Intervals] = []
    for name in ("smooth", "exponential", "squared norm"):
        moved = TRANSFORMS[name](maps)
        rows = rows_of(moved.max(axis=(1, 2)), labels)
        found.append(intervals(METRICS, class_draws(rows, pixels_of(rows, moved, masks), 0.3)[0]))
    assert set(found[0]) == {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro"}
    for name, (low, high) in found[0].items():
        assert 0 <= low < high <= 1
        for other in found[1:]:
            np.testing.assert_allclose(other[name], (low, high), atol=3e-3 if name == "pixel_ap" else 1e-3)


def test_what_is_undefined_has_no_draws_and_a_draw_without_masks_does_not_spoil_an_interval() -> None:
    maps, masks = smooth_maps(num_maps=6, size=32, seed=1)
    masks[[1, 2]] = False  # of the anomalous images 1, 2, 4 and 5 only two have a mask
    labels = np.array([0, 1, 1, 0, 1, 1])
    rows = rows_of(maps.max(axis=(1, 2)), labels)
    pixels = pixels_of(rows, maps, masks)

    def names(chosen: list[int]) -> set[str]:
        own = [rows[i] for i in chosen]
        return set(class_draws(own, {row.sample_id: pixels[row.sample_id] for row in own}, 0.3)[0])

    assert names([0, 3]) == set()
    assert names([4, 5]) == {"pixel_auroc", "pixel_ap", "aupro"}
    assert names([0, 1]) == {"image_auroc", "image_ap"}
    draws, _ = class_draws(rows, pixels, 0.3)
    assert np.isnan(draws["aupro"]).any()
    assert np.isfinite([*intervals(METRICS, draws).values()]).all()


def test_a_mean_over_classes_is_narrower_and_leaves_undefined_ones_out() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 20)
    classes: list[Draws] = [
        class_draws(rows_of(rng.normal(size=40) + labels, labels, f"toy/{i}"), {}, 0.3)[0] for i in range(9)
    ]
    assert class_draws(rows_of(np.zeros(3), np.zeros(3, dtype=int)), {}, 0.3) == ({}, {})
    widths = [high - low for low, high in (intervals(METRICS, one)["image_auroc"] for one in classes)]
    low, high = intervals(METRICS, mean_draws([*classes, {}]))["image_auroc"]
    assert high - low < 0.5 * np.mean(widths)
    assert intervals(METRICS, mean_draws([{}])) == {}


def test_few_bins_per_image_hold_all_its_pixels_and_regions() -> None:
    maps, masks = smooth_maps(num_maps=9, size=96, seed=5)
    rows = rows_of(np.zeros(9), masks.any(axis=(1, 2)).astype(int))
    images = list(pixels_of(rows, TRANSFORMS["huge range"](maps), masks).values())
    assert max(image.bins.keys.size for image in images) <= IMAGE_BINS
    assert max(image.bins.num_bytes for image in images) < 10_000
    normal, anomalous, weight = pixel_table(images).sum(axis=2)
    np.testing.assert_array_equal(normal, (~masks).sum(axis=(1, 2)))
    np.testing.assert_array_equal(anomalous, masks.sum(axis=(1, 2)))
    regions = [MapPixels.of(one.astype(np.float32), mask, 8).num_regions for one, mask in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(weight / 2**20, regions, atol=1e-3)
