"""AU-sPRO of MVTec LOCO AD: against the official definition written out slowly, worked examples, and real fixtures, at
the size of the source images and on the map."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools.fixtures import write_fixture
from data_tools.sharder import Conversion, convert
from fmad_dist.errors import UserError
from fmad_dist.evaluation import evaluator
from fmad_dist.evaluation.channels import saturation_pixels, single_defects
from fmad_dist.evaluation.curves import pro_curve
from fmad_dist.evaluation.histogram import MapPixels, PixelHistogram
from fmad_dist.evaluation.native import at_size
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.regions import Channel, SingleDefects
from fmad_dist.evaluation.results import Results
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.stream.dataset import Dataset
from fmad_dist.stream.manifest import DefectSaturation
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import SampleReader

Case = tuple[np.ndarray, list[list[Channel]]]  # maps [n, H, W] and the channels of each
TYPES = ("logical_anomalies", "structural_anomalies")
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "smooth": lambda x: x,
    "exponential": lambda x: np.exp(8 * x),
    "squared norm": lambda x: (x + 8) ** 4,
    "tied": lambda x: np.round(2 * x),
    "constant": lambda x: np.zeros_like(x),
}


def official(maps: Sequence[np.ndarray], channels: Sequence[Sequence[Channel]], limit: float) -> float:
    """Every distinct score as a threshold; a pixel is found at or above it. Points before and after the limit are
    joined by a line. Images may differ in size."""
    thresholds = np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]

    def num_found(scores: np.ndarray) -> np.ndarray:
        return scores.size - np.searchsorted(np.sort(scores), thresholds, side="left")

    false, num_normal, overlaps = np.zeros(thresholds.size), 0, []
    for anomaly_map, of_image in zip(maps, channels, strict=True):
        outside = np.ones(anomaly_map.shape, dtype=bool)
        for channel in of_image:
            outside &= ~channel.mask
            overlaps.append(np.minimum(num_found(anomaly_map[channel.mask]) / channel.saturation, 1.0))
        false += num_found(anomaly_map[outside])
        num_normal += int(outside.sum())
    points = [(0.0, 0.0), *zip(false / num_normal, np.mean(overlaps, axis=0), strict=True)]
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
        defects = SingleDefects(tuple(of_image), *anomaly_map.shape, False)
        histogram.count(MapPixels.of_defects(anomaly_map.astype(np.float32), defects))
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


def test_saturation_of_both_kinds() -> None:
    share = DefectSaturation(defect_name="a", pixel_value=255, saturation_threshold=0.3, relative_saturation=True)
    pixels = DefectSaturation(defect_name="b", pixel_value=254, saturation_threshold=6300, relative_saturation=False)
    assert saturation_pixels(share, area=99, scale=0.5) == 29  # floor, whatever the scale
    assert saturation_pixels(share, area=2, scale=0.5) == 1
    assert saturation_pixels(pixels, area=10_000, scale=1.0) == 6300
    assert saturation_pixels(pixels, area=10_000, scale=65536 / (1700 * 1000)) == 242
    assert saturation_pixels(pixels, area=100, scale=1.0) == 100


def scored(
    name: str,
    anomaly_map: np.ndarray,
    of_image: Sequence[Channel],
    defect_type: str,
    native: tuple[int, int] | None = None,
) -> ScoredImage:
    """An image whose single defects are on its map, or at the size (height, width) `native`."""
    score, image = float(anomaly_map.max()), np.zeros((8, 8, 3), dtype=np.uint8)
    kind, label = (defect_type, 1) if of_image else ("good", 0)
    as_map = anomaly_map.astype(np.float32)
    mask = np.full(as_map.shape, label == 1)
    mask[0] = False
    defects = SingleDefects(tuple(of_image), *(native or as_map.shape), native is not None)
    return ScoredImage(name, "loco/a", label, kind, score, as_map, mask, image, defects)


def images_of(case: Case) -> list[ScoredImage]:
    return [scored(f"loco/{i}", one, own, TYPES[i % 2]) for i, (one, own) in enumerate(zip(*case, strict=True))]


def native_images(seed: int, num_images: int = 9, map_size: int = 8) -> list[ScoredImage]:
    """Images of several sizes with overlapping channels at their own size, every third one normal."""
    rng, images = np.random.default_rng(seed), []
    for i in range(num_images):
        height, width = (int(side) for side in rng.integers(9, 30, 2))
        channels = []
        for _ in range(0 if i % 3 == 0 else int(rng.integers(1, 4))):
            mask = np.zeros((height, width), dtype=bool)
            (top, left), extent = rng.integers(0, 8, 2), rng.integers(1, 12, 2)
            mask[top : top + extent[0], left : left + extent[1]] = True
            channels.append(Channel(mask, int(rng.integers(1, mask.sum() + 1))))
        anomaly_map = rng.normal(size=(map_size, map_size)) + (i % 3 > 0)
        images.append(scored(f"loco/{i}", anomaly_map, channels, TYPES[i % 2], (height, width)))
    return images


def results_of(images: Sequence[ScoredImage], map_size: int) -> Results:
    state = EvaluationState(Protocol(map_size=map_size))
    for image in images:
        state.update(image)
    return state.compute()


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


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), num_ranks=st.integers(1, 5), native=st.booleans())
def test_any_split_gives_the_same_bytes(seed: int, num_ranks: int, native: bool) -> None:
    rng = np.random.default_rng(seed)
    images = native_images(seed, map_size=16) if native else images_of(random_case(seed))
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


def test_a_defect_that_fits_no_image_is_refused() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[2, 2] = True
    state, good = EvaluationState(Protocol(map_size=16)), scored("x", np.zeros((16, 16)), [Channel(mask, 1)], TYPES[0])
    for channel in (
        Channel(np.zeros((16, 16), dtype=bool), 1),
        Channel(mask[1:], 1),
        Channel(mask, 2),
        Channel(mask, 0),
    ):
        with pytest.raises(UserError, match="x: a single defect is empty, of another size"):
            state.update(replace(good, defects=SingleDefects((channel,), 16, 16, False)))
    with pytest.raises(UserError, match="of a normal image"):
        state.update(replace(good, label=0, mask=np.zeros((16, 16), dtype=bool)))
    assert len(state) == 0


def test_a_class_is_measured_in_one_way() -> None:
    on_map, native = images_of(random_case(1))[1], native_images(1, map_size=16)[2]
    state, other = EvaluationState(Protocol(map_size=16)), EvaluationState(Protocol(map_size=16))
    state.update(on_map)
    for image in (native, replace(native, defects=None)):
        with pytest.raises(UserError, match="loco/a: some images have masks at the source's size and some not"):
            state.update(image)
    other.update(native)
    before = state.to_bytes()
    with pytest.raises(UserError, match="loco/a: some images have masks"):
        state.merge(other)
    assert state.to_bytes() == before


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


def channels_size(image: ScoredImage) -> tuple[int, int]:
    assert image.defects is not None
    return image.defects.height, image.defects.width


def stretched(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear by torch, in double precision; rounded, because equal values may differ in their last bit."""
    found = torch.from_numpy(anomaly_map.astype(np.float64))[None, None]
    return torch.nn.functional.interpolate(found, size, mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("size", [(1280, 1600), (16, 16), (17, 40), (850, 16)])
def test_maps_are_stretched_bilinearly(size: tuple[int, int]) -> None:
    anomaly_map = np.random.default_rng(3).gamma(2.0, 1e4, (16, 16)).astype(np.float32)
    found = at_size(anomaly_map, *size)
    assert (found.shape, found.dtype) == (size, np.float32)
    np.testing.assert_allclose(found, stretched(anomaly_map, size), rtol=3e-7)


def test_native_pixels_by_hand() -> None:
    # A map of 2 x 2 is stretched to 2 x 4: every row 0, 1, 3, 4. The defect is the 1 and the 3 of the first row, full
    # with one pixel: FPR 2/6 and sPRO 0 at 4, 3/6 and 1 at 3. Up to FPR 1 the area is (1/6) / 2 + 1/2.
    mask = np.array([[False, True, True, False], [False] * 4])
    anomaly_map = np.array([[0.0, 4.0], [0.0, 4.0]])
    for saturation, area in ((1, 7 / 12), (2, 1 / 2)):  # full with both: 0, 1/2, 1 at FPR 2/6, 3/6, 4/6
        image = scored("loco/x", anomaly_map, [Channel(mask, saturation)], TYPES[0], (2, 4))
        result = results_of([image], 2).classes["loco/a"]
        assert result.areas["au_spro@1"] == pytest.approx(area, abs=1e-9)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixture("loco", tmp_path_factory.mktemp("loco") / "tree")["official"]


@pytest.fixture(scope="module")
def mixture(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Converted as by default: resized images, with the masks as published beside the resized ones."""
    out = str(tmp_path_factory.mktemp("loco") / "data")
    convert(Conversion("loco", "loco", tree, out, size=64, num_workers=1))
    return Mixture.load([out])


def resized_masks_only(dataset: Dataset) -> Dataset:
    """The dataset as if it stored no masks as published."""
    table = dataset.table
    for name in ("offset", "size", "sha256"):
        place = table.column_names.index(f"original_mask_{name}")
        empty = pa.array([[]] * len(dataset), table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), empty)
    return Dataset(dataset.url, dataset.manifest, table)


def test_defects_of_the_loco_layout_on_the_map(mixture: Mixture) -> None:
    """Resized masks alone: channels on the map with their own saturation, scaled."""
    dataset = resized_masks_only(mixture.datasets[0])
    assert not dataset.stores_native_masks
    reader = SampleReader(dataset, 64)
    found = {}
    for row in map(int, mixture.rows("test")):
        sample = dataset.sample(row)
        defects = single_defects(reader, row, reader.masks(row), 64)
        assert (defects.height, defects.width, defects.native) == (64, 64, False)
        assert len(defects.channels) == len(sample.mask_ids)
        assert bool(defects.channels) == (sample.label == 1)
        for channel, ids in zip(defects.channels, sample.mask_ids, strict=True):
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


@pytest.mark.parametrize("rendition", ["resized", "original"])
def test_the_loco_layout_is_measured_as_its_owner_does(tree: Path, tmp_path: Path, rendition: str) -> None:
    """From a tree as the benchmark ships it, through conversion and evaluation, to what the official definition gives
    on the files of that tree."""
    convert(Conversion("loco", "loco", tree, str(tmp_path), size=16, num_workers=1, rendition=rendition))  # type: ignore[arg-type]
    mixture = Mixture.load([str(tmp_path)])
    batch = evaluator.TestImages(mixture, 16, 16)[mixture.rows("test").tolist()]
    rng, state = np.random.default_rng(0), EvaluationState(Protocol(map_size=16))
    published: dict[str, list[tuple[str, np.ndarray, list[Channel]]]] = {}
    for position, row in enumerate(batch.rows):
        sample = mixture.datasets[0].sample(row)
        anomaly_map = (rng.normal(size=(16, 16)) + batch.masks[position]).astype(np.float32)
        image, name = batch.images[position].permute(1, 2, 0).numpy(), f"loco/{sample.class_name}"
        facts = (sample.sample_id, name, sample.label, sample.defect_type, float(anomaly_map.max()))
        state.update(ScoredImage(*facts, anomaly_map, batch.masks[position], image, batch.defects[position]))
        path = mixture.datasets[0].table.column("source")[row].as_py()
        size, channels = published_channels(tree, path)
        published.setdefault(name, []).append((sample.defect_type, stretched(anomaly_map, size), channels))
    results, num_compared = state.compute(), 0
    for name, images in published.items():
        for kind, defect in results.classes[name].defects.items():
            chosen = [image for image in images if image[0] in ("good", kind)]
            wanted = official([image[1] for image in chosen], [image[2] for image in chosen], 0.05)
            assert defect.areas["au_spro@0.05"] == pytest.approx(wanted, abs=1e-6)
            num_compared += 1
    assert num_compared == 4
    assert results.mean.areas["au_spro@0.05"] > 0


def published_channels(tree: Path, source: str) -> tuple[tuple[int, int], list[Channel]]:
    """Height and width of an image, and its defects with the saturation areas of the official evaluation."""
    name, _, kind, file = source.split("/")
    rules = {rule["pixel_value"]: rule for rule in json.loads((tree / name / "defects_config.json").read_text())}
    channels = []
    for path in sorted((tree / name / "ground_truth" / kind / Path(file).stem).glob("*.png")):
        values = np.asarray(Image.open(path))
        rule, area = rules[int(values.max())], int(np.sum(values > 0))
        share = rule["relative_saturation"]
        threshold = rule["saturation_threshold"]
        channels.append(Channel(values > 0, int(threshold * area) if share else min(threshold, area)))
    width, height = Image.open(tree / source).size
    return (height, width), channels
