"""Regions and single defects: AU-sPRO of MVTec LOCO AD against the official definition, at either size."""

from collections.abc import Callable

import numpy as np
import pytest

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.curves import pro_curve
from fmad_dist.metrics.histogram import MapPixels, PixelHistogram
from fmad_dist.metrics.regions import REGION_UNIT, Channel, SingleDefects, at_size, label_regions
from tests.support.saturated_overlap import (
    TYPES,
    channels_size,
    images_of,
    native_images,
    official,
    random_case,
    results_of,
    scored,
    stretched,
)

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "smooth": lambda x: x,
    "exponential": lambda x: np.exp(8 * x),
    "squared norm": lambda x: (x + 8) ** 4,
    "tied": lambda x: np.round(2 * x),
    "constant": lambda x: np.zeros_like(x),
}


def histogram_of(maps: np.ndarray, channels: list[list[Channel]], max_bins: int = 2**17) -> PixelHistogram:
    histogram = PixelHistogram(max_bins)
    for anomaly_map, of_image in zip(maps, channels, strict=True):
        defects = SingleDefects(tuple(of_image), *anomaly_map.shape, False)
        histogram.add(MapPixels.of_defects(anomaly_map.astype(np.float32), defects))
    return histogram


@pytest.mark.parametrize("name", TRANSFORMS)
def test_matches_the_official_definition(name: str) -> None:
    for seed in range(3):
        maps, channels = random_case(seed)
        maps = TRANSFORMS[name](maps).astype(np.float32)
        curve = pro_curve(histogram_of(maps, channels))
        for limit in Protocol().spro_limits:
            assert curve.area(limit) == pytest.approx(official(maps, channels, limit), abs=1e-6)


def test_few_bins_stay_close() -> None:
    maps, channels = random_case(5, num_maps=12, size=32)
    curve = pro_curve(histogram_of(maps, channels, max_bins=2**11))
    assert curve.area(0.05) == pytest.approx(official(maps, channels, 0.05), abs=5e-3)


def test_four_pixels_by_hand() -> None:
    # descending: defect .9, normal .8, defect .7 and .6, normal .5. Saturated after 2 of 3 defect pixels: sPRO .5 until
    # FPR .5, where the next defect pixel makes it 1. Up to FPR 1: .5 * .5 + 1 * .5; up to .3: .5.
    mask = np.array([[True, False, True, True, False]])
    curve = pro_curve(histogram_of(np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]]), [[Channel(mask, 2)]]))
    assert curve.area(1.0) == pytest.approx(0.75)
    assert curve.area(0.3) == pytest.approx(0.5)
    # never saturated before its last pixel: 1/3 until FPR .5, then 1
    curve = pro_curve(histogram_of(np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]]), [[Channel(mask, 3)]]))
    assert curve.area(1.0) == pytest.approx((1 / 3 + 1) / 2)


def test_channels_weigh_the_same_and_share_pixels_by_hand() -> None:
    # one channel of 1 pixel inside one of 4 that is full with 2; order: shared .9, normal .5, the rest. At FPR 0:
    # (1 + 1/2) / 2 = .75; from FPR 1 on 1.
    small, large = np.array([[1, 0, 0, 0, 0]], dtype=bool), np.array([[1, 1, 1, 1, 0]], dtype=bool)
    curve = pro_curve(histogram_of(np.array([[[0.9, 0.4, 0.3, 0.2, 0.5]]]), [[Channel(small, 1), Channel(large, 2)]]))
    assert curve.area(1.0) == pytest.approx(0.75)


def test_types_are_measured_apart_with_all_normal_images_and_then_averaged() -> None:
    case = random_case(3, num_maps=12)
    result = results_of(images_of(case), 16).classes["loco/a"]
    values = {}
    for parity, name in enumerate(TYPES):
        chosen = [i for i in range(12) if i % 3 == 0 or i % 2 == parity]
        maps, channels = case[0][chosen], [case[1][i] for i in chosen]
        values[name] = official(maps, channels, 0.05)
        assert result.defects[name].areas["au_spro_map@0.05"] == pytest.approx(values[name], abs=1e-6)
        assert result.defects[name].num_anomalous == 4
    assert result.areas["au_spro_map@0.05"] == pytest.approx(np.mean(list(values.values())), abs=1e-6)
    aurocs = [defect.metrics.image_auroc for defect in result.defects.values()]
    assert result.areas["image_auroc_of_types"] == pytest.approx(np.mean(aurocs))


def test_native_overlap_matches_the_official_definition() -> None:
    """Images of several sizes; the maps that official() gets are stretched by another library."""
    for seed in range(3):
        images = native_images(seed, num_images=12)
        result = results_of(images, 8).classes["loco/a"]
        for name in TYPES:
            chosen = [image for image in images if image.defect_type in ("good", name)]
            channels = [image.defects.channels for image in chosen if image.defects]
            maps = [stretched(image.anomaly_map, channels_size(image)) for image in chosen]
            for limit in Protocol().spro_limits:
                wanted = official(maps, channels, limit)
                assert result.defects[name].areas[f"au_spro@{limit:g}"] == pytest.approx(wanted, abs=1e-6)
        assert not any(name.startswith("au_spro_map") for name in result.areas)


def test_native_pixels_by_hand() -> None:
    # A map of 2 x 2 is stretched to 2 x 4: every row 0, 1, 3, 4. The defect is the 1 and the 3 of the first row, full
    # with one pixel: FPR 2/6 and sPRO 0 at 4, 3/6 and 1 at 3. Up to FPR 1 the area is (1/6) / 2 + 1/2.
    mask = np.array([[False, True, True, False], [False] * 4])
    anomaly_map = np.array([[0.0, 4.0], [0.0, 4.0]])
    for saturation, area in ((1, 7 / 12), (2, 1 / 2)):  # full with both: 0, 1/2, 1 at FPR 2/6, 3/6, 4/6
        image = scored("loco/x", anomaly_map, [Channel(mask, saturation)], TYPES[0], (2, 4))
        result = results_of([image], 2).classes["loco/a"]
        assert result.areas["au_spro@1"] == pytest.approx(area, abs=1e-9)


def test_regions_weigh_the_same_whatever_their_size() -> None:
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=bool)
    eight, four = label_regions(mask, 8), label_regions(mask, 4)
    third = REGION_UNIT // 3
    assert (eight.num_regions, eight.weights.tolist()) == (2, [REGION_UNIT // 2, REGION_UNIT // 2, third, third, third])
    assert (four.num_regions, four.weights.tolist()) == (3, [REGION_UNIT, REGION_UNIT, third, third, third])


@pytest.mark.parametrize("size", [(1280, 1600), (16, 16), (17, 40), (850, 16)])
def test_maps_are_stretched_bilinearly(size: tuple[int, int]) -> None:
    anomaly_map = np.random.default_rng(3).gamma(2.0, 1e4, (16, 16)).astype(np.float32)
    found = at_size(anomaly_map, *size)
    assert (found.shape, found.dtype) == (size, np.float32)
    np.testing.assert_allclose(found, stretched(anomaly_map, size), rtol=3e-7)
