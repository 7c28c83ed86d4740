"""AU-sPRO of MVTec LOCO AD: against the official definition written out slowly, worked examples, and real fixtures."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.fixtures import write_fixture
from data_tools.sharder import Conversion, convert
from fmad_dist.errors import UserError
from fmad_dist.evaluation.channels import channels_on_map, saturation_pixels
from fmad_dist.evaluation.curves import spro_curve
from fmad_dist.evaluation.histogram import PixelHistogram
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.regions import Channel
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.stream.manifest import DefectSaturation
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import SampleReader

Case = tuple[np.ndarray, list[list[Channel]]]  # maps [n, H, W] and the channels of each
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "smooth": lambda x: x,
    "exponential": lambda x: np.exp(8 * x),
    "squared norm": lambda x: (x + 8) ** 4,
    "tied": lambda x: np.round(2 * x),
    "constant": lambda x: np.zeros_like(x),
}


def official(maps: np.ndarray, channels: list[list[Channel]], limit: float) -> float:
    """Every distinct score as a threshold; a pixel is found above it. Points before and after the limit are joined by
    a line."""
    union = np.zeros(maps.shape, dtype=bool)
    for image, of_image in enumerate(channels):
        for channel in of_image:
            union[image] |= channel.mask
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        scores = [
            min(np.sum(found[image] & channel.mask) / channel.saturation, 1.0)
            for image, of_image in enumerate(channels)
            for channel in of_image
        ]
        points.append((np.sum(found & ~union) / np.sum(~union), float(np.mean(scores))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y1) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def histogram_of(maps: np.ndarray, channels: list[list[Channel]], max_bins: int = 2**17) -> PixelHistogram:
    histogram = PixelHistogram(max_bins)
    for anomaly_map, of_image in zip(maps, channels, strict=True):
        mask = np.zeros(anomaly_map.shape, dtype=bool)
        for channel in of_image:
            mask |= channel.mask
        histogram.add(anomaly_map.astype(np.float32), mask, 8, of_image)
    return histogram


def random_case(seed: int, num_maps: int = 8, size: int = 16) -> Case:
    """Every third image is normal; the channels of an image overlap and saturate anywhere between one pixel and all."""
    rng = np.random.default_rng(seed)
    maps, channels = rng.normal(size=(num_maps, size, size)), []
    for image in range(num_maps):
        of_image = []
        for _ in range(0 if image % 3 == 0 else int(rng.integers(1, 4))):
            mask = np.zeros((size, size), dtype=bool)
            (y, x), (height, width) = rng.integers(0, size - 4, 2), rng.integers(1, 9, 2)
            mask[y : y + height, x : x + width] = True
            maps[image][mask] += 1.5
            of_image.append(Channel(mask, int(rng.integers(1, mask.sum() + 1))))
        channels.append(of_image)
    return maps.astype(np.float32).astype(np.float64), channels


@pytest.mark.parametrize("name", TRANSFORMS)
def test_matches_the_official_definition(name: str) -> None:
    for seed in range(3):
        maps, channels = random_case(seed)
        maps = TRANSFORMS[name](maps).astype(np.float32)
        curve = spro_curve(histogram_of(maps, channels))
        for limit in Protocol().spro_limits:
            assert curve.area(limit) == pytest.approx(official(maps, channels, limit), abs=1e-6)


def test_few_bins_stay_close() -> None:
    maps, channels = random_case(5, num_maps=12, size=32)
    curve = spro_curve(histogram_of(maps, channels, max_bins=2**11))
    assert curve.area(0.05) == pytest.approx(official(maps, channels, 0.05), abs=5e-3)


def test_four_pixels_by_hand() -> None:
    # descending: defect .9, normal .8, defect .7 and .6, normal .5. Saturated after 2 of 3 defect pixels: sPRO .5 until
    # FPR .5, where the next defect pixel makes it 1. Up to FPR 1: .5 * .5 + 1 * .5; up to .3: .5.
    mask = np.array([[True, False, True, True, False]])
    curve = spro_curve(histogram_of(np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]]), [[Channel(mask, 2)]]))
    assert curve.area(1.0) == pytest.approx(0.75)
    assert curve.area(0.3) == pytest.approx(0.5)
    # never saturated before its last pixel: 1/3 until FPR .5, then 1
    curve = spro_curve(histogram_of(np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]]), [[Channel(mask, 3)]]))
    assert curve.area(1.0) == pytest.approx((1 / 3 + 1) / 2)


def test_channels_weigh_the_same_and_share_pixels_by_hand() -> None:
    # one channel of 1 pixel inside one of 4 that is full with 2; order: shared .9, normal .5, the rest. At FPR 0:
    # (1 + 1/2) / 2 = .75; from FPR 1 on 1.
    small, large = np.array([[1, 0, 0, 0, 0]], dtype=bool), np.array([[1, 1, 1, 1, 0]], dtype=bool)
    curve = spro_curve(histogram_of(np.array([[[0.9, 0.4, 0.3, 0.2, 0.5]]]), [[Channel(small, 1), Channel(large, 2)]]))
    assert curve.area(1.0) == pytest.approx(0.75)


def test_saturation_of_both_kinds() -> None:
    share = DefectSaturation(defect_name="a", pixel_value=255, saturation_threshold=0.3, relative_saturation=True)
    pixels = DefectSaturation(defect_name="b", pixel_value=254, saturation_threshold=6300, relative_saturation=False)
    assert saturation_pixels(share, area=99, scale=0.5) == 29  # floor, whatever the scale
    assert saturation_pixels(share, area=2, scale=0.5) == 1
    assert saturation_pixels(pixels, area=10_000, scale=1.0) == 6300
    assert saturation_pixels(pixels, area=10_000, scale=65536 / (1700 * 1000)) == 242
    assert saturation_pixels(pixels, area=100, scale=1.0) == 100


def scored(name: str, anomaly_map: np.ndarray, of_image: list[Channel], defect_type: str) -> ScoredImage:
    mask = np.zeros(anomaly_map.shape, dtype=bool)
    for channel in of_image:
        mask |= channel.mask
    score, image = float(anomaly_map.max()), np.zeros((8, 8, 3), dtype=np.uint8)
    kind, label = (defect_type, 1) if of_image else ("good", 0)
    as_map = anomaly_map.astype(np.float32)
    return ScoredImage(name, "loco/a", label, kind, score, as_map, mask, image, tuple(of_image))


def images_of(case: Case) -> list[ScoredImage]:
    types = ("logical_anomalies", "structural_anomalies")
    return [
        scored(f"loco/{i}", one, of_image, types[i % 2]) for i, (one, of_image) in enumerate(zip(*case, strict=True))
    ]


def test_types_are_measured_apart_with_all_normal_images_and_then_averaged() -> None:
    case = random_case(3, num_maps=12)
    state = EvaluationState(Protocol(map_size=16))
    for image in images_of(case):
        state.update(image)
    result = state.compute().classes["loco/a"]
    values = {}
    for parity, name in enumerate(("logical_anomalies", "structural_anomalies")):
        chosen = [i for i in range(12) if i % 3 == 0 or i % 2 == parity]
        maps, channels = case[0][chosen], [case[1][i] for i in chosen]
        values[name] = official(maps, channels, 0.05)
        assert result.defects[name].areas["au_spro@0.05"] == pytest.approx(values[name], abs=1e-6)
        assert result.defects[name].num_anomalous == 4
    assert result.areas["au_spro@0.05"] == pytest.approx(np.mean(list(values.values())), abs=1e-6)
    aurocs = [defect.metrics.image_auroc for defect in result.defects.values()]
    assert result.areas["image_auroc_of_types"] == pytest.approx(np.mean(aurocs))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), num_ranks=st.integers(1, 5))
def test_any_split_gives_the_same_bytes(seed: int, num_ranks: int) -> None:
    rng, images = np.random.default_rng(seed), images_of(random_case(seed))
    protocol = Protocol(map_size=16, histogram_bins=1024)
    whole, ranks = EvaluationState(protocol), [EvaluationState(protocol) for _ in range(num_ranks)]
    for image in images:
        whole.update(image)
    for position in rng.permutation(len(images)):
        ranks[int(rng.integers(num_ranks))].update(images[position])
    merged = EvaluationState(protocol)
    for rank in ranks:
        merged.merge(EvaluationState.from_bytes(rank.to_bytes()))
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.compute() == whole.compute()


def test_a_channel_outside_the_mask_is_refused() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[2, 2] = True
    empty = np.zeros((16, 16), dtype=bool)
    for channel in (Channel(~mask, 1), Channel(empty, 1), Channel(mask, 2), Channel(mask, 0)):
        image = scored("x", np.zeros((16, 16)), [Channel(mask, 1)], "logical_anomalies")
        with pytest.raises(UserError, match="x: a defect channel is empty, lies outside the mask"):
            EvaluationState(Protocol(map_size=16)).update(replace(image, channels=(channel,)))


def test_channels_of_the_loco_layout(tmp_path: Path) -> None:
    """From a tree as the benchmark ships it, through conversion, to channels on the map with their own saturation."""
    tree = write_fixture("loco", tmp_path / "tree")["official"]
    convert(Conversion("loco", "loco", tree, str(tmp_path / "data"), size=64, num_workers=1))
    mixture = Mixture.load([str(tmp_path / "data")])
    dataset = mixture.datasets[0]
    reader = SampleReader(dataset, 64)
    found = {}
    for row in map(int, mixture.rows("test")):
        sample = dataset.sample(row)
        channels = channels_on_map(dataset.manifest, sample, reader.masks(row), 64)
        assert len(channels) == len(sample.mask_ids)
        assert bool(channels) == (sample.label == 1)
        for channel, ids in zip(channels, sample.mask_ids, strict=True):
            found[sample.class_name, ids[0]] = (channel, sample)
    rules = {(n, rule.pixel_value): rule for n, listed in dataset.manifest.saturation.items() for rule in listed}
    assert {rules[key].relative_saturation for key in found} == {True, False}
    for key, (channel, sample) in found.items():
        area, scale = int(channel.mask.sum()), 64**2 / (sample.source_width * sample.source_height)
        threshold = rules[key].saturation_threshold
        wanted = threshold * area if rules[key].relative_saturation else min(threshold * scale, area)
        assert channel.saturation == max(1, int(wanted))
    overlapping = [s for s in map(dataset.sample, map(int, mixture.rows("test"))) if len(s.mask_ids) > 1]
    assert overlapping
