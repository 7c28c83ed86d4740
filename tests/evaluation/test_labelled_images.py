"""Test images with their truth, as they reach the metrics; singly annotated defects, from stored masks to measures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data_tools.conversion.convert import Conversion, convert
from data_tools.fixtures import write_fixture
from fmad_dist.config.protocol import Protocol
from fmad_dist.detector.detector import Detections
from fmad_dist.evaluation.labelled_images import (
    LabelledBatch,
    LabelledImages,
    saturation_pixels,
    scored_images,
    single_defects,
)
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.regions import Channel
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.stream.dataset import Dataset, Sample
from fmad_dist.stream.manifest import DefectSaturation
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import SampleReader
from tests.support.saturated_overlap import official, stretched


def test_the_evaluator_hands_on_which_part_an_image_shows() -> None:
    sample = Sample("real_iad/usb/a", "real_iad", "usb", "test", 0, "good", "s", None, (), 8, 8, group="usb_0001_OK")
    dataset = SimpleNamespace(sample=lambda place: sample)
    mixture = cast(Mixture, SimpleNamespace(locate=lambda row: (dataset, 0)))
    batch = LabelledBatch((5,), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (np.zeros((8, 8), dtype=bool),), (None,))
    found = Detections(torch.zeros(1), torch.zeros(1, 8, 8), *torch.zeros(4, 1))
    (image,) = scored_images(mixture, batch, found)
    assert (image.sample_id, image.group) == ("real_iad/usb/a", "usb_0001_OK")


def test_saturation_of_both_kinds() -> None:
    share = DefectSaturation(defect_name="a", pixel_value=255, saturation_threshold=0.3, relative_saturation=True)
    pixels = DefectSaturation(defect_name="b", pixel_value=254, saturation_threshold=6300, relative_saturation=False)
    assert saturation_pixels(share, area=99, scale=0.5) == 29  # floor, whatever the scale
    assert saturation_pixels(share, area=2, scale=0.5) == 1
    assert saturation_pixels(pixels, area=10_000, scale=1.0) == 6300
    assert saturation_pixels(pixels, area=10_000, scale=65536 / (1700 * 1000)) == 242
    assert saturation_pixels(pixels, area=100, scale=1.0) == 100


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixture("loco", tmp_path_factory.mktemp("loco") / "tree")["official"]


@pytest.fixture(scope="module")
def mixture(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Converted as by default: resized images, with the masks as published beside the resized ones."""
    out = str(tmp_path_factory.mktemp("loco") / "data")
    convert(Conversion(layout="loco", dataset="loco", source=tree, out=out, size=64, num_workers=1))
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
    convert(
        Conversion(
            layout="loco", dataset="loco", source=tree, out=str(tmp_path), size=16, num_workers=1, rendition=rendition
        )
    )  # type: ignore[arg-type]
    mixture = Mixture.load([str(tmp_path)])
    batch = LabelledImages(mixture, 16, 16)[mixture.rows("test").tolist()]
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
    results, num_compared = compute_results(state), 0
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
