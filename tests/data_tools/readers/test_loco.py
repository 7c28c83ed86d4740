"""What careless readers of MVTec LOCO AD get wrong, and trees that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmad_dist.stream.manifest import load_manifest
from fmad_dist.stream.reader import SampleReader
from tests.data_tools.readers.refusals import assert_refused, change_mask, edit, with_second_value

LOGICAL = "pushpins/ground_truth/logical_anomalies"

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "loco: no defects_config.json": (
        lambda t: (t / "pushpins/defects_config.json").unlink(),
        "pushpins/defects_config.json: missing, but it explains",
    ),
    "loco: config is no JSON": (
        lambda t: (t / "pushpins/defects_config.json").write_text("["),
        "defects_config.json: the whole file is wrong",
    ),
    "loco: config without a field": (
        lambda t: edit(t / "pushpins/defects_config.json", "pixel_value", "value"),
        r"0.pixel_value is wrong \(Field required\)",
    ),
    "loco: share that is no fraction": (
        lambda t: edit(t / "breakfast_box/defects_config.json", "0.5", "5"),
        "saturation_threshold of missing_cereals is 5; give a fraction",
    ),
    "loco: pixels that are a fraction": (
        lambda t: edit(t / "pushpins/defects_config.json", ": 40", ": 0.4"),
        "is 0.4; give a whole number",
    ),
    "loco: masks missing": (
        lambda t: shutil.rmtree(t / LOGICAL / "000"),
        "000.png: its masks are missing; expected .*logical_anomalies/000/000.png",
    ),
    "loco: masks without image": (
        lambda t: (t / LOGICAL / "000").rename(t / LOGICAL / "009"),
        "009: no image in .* belongs",
    ),
    "loco: unknown defect id": (
        lambda t: change_mask(t / LOGICAL / "001/000.png", lambda m: (m != 0) * 9),
        "000.png: defect id 9 is not one of 254, 255",
    ),
    "loco: two values in one mask": (
        lambda t: change_mask(t / LOGICAL / "001/000.png", with_second_value),
        r"holds the values \(7, 254\), but is the mask of one defect",
    ),
    "loco: empty channel": (
        lambda t: change_mask(t / LOGICAL / "000/001.png", lambda m: m * 0),
        "000/001.png: the mask is empty",
    ),
    "loco: unknown kind": (lambda t: (t / "pushpins/test/dirt").mkdir(), "test/dirt: not part of the loco layout"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    assert_refused(converted, tmp_path, case, *BAD[case])


def test_loco_keeps_every_mask_of_an_image(converted):
    case = converted("loco")
    sample = case.samples["pushpins/test/logical_anomalies/000.png"]
    assert sample.mask_ids == ((255,), (254,))
    first, second = (case.stored_pixels(sample, span) != 0 for span in sample.masks)
    assert (first & second).any()
    assert (first & ~second).any()
    assert (second & ~first).any()


def test_loco_keeps_masks_as_published_beside_resized_images(converted):
    """Without them the official metric, which is defined at the size of the source, could not be computed."""
    case = converted("loco")
    assert not case.dataset.manifest.rendition.original
    reader, sources = SampleReader(case.dataset), case.dataset.table.column("source").to_pylist()
    facts, num_compared = {fact["source"]: fact for fact in case.facts["images"]}, 0
    for row, source in enumerate(sources):
        assert case.samples[source].original is None
        for mask, published in zip(reader.native_masks(row), facts[source]["masks"], strict=True):
            np.testing.assert_array_equal(mask, case.published(published["file"]) != 0)
            num_compared += 1
    assert num_compared == 6
    assert case.dataset.stores_native_masks
    assert not converted("mvtec").dataset.stores_native_masks


def test_loco_id_below_128(converted):
    case = converted("loco")
    sample = case.samples["breakfast_box/test/structural_anomalies/000.png"]
    assert sample.mask_ids == ((100,),)
    assert case.stored_pixels(sample, sample.masks[0]).any()


def test_loco_saturation(converted):
    manifest = load_manifest(converted("loco").options.out)
    assert manifest.mask_semantics == "channel"
    rules = [rule.model_dump() for rule in manifest.saturation["splicing_connectors"]]
    fields = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    assert [tuple(rule[field] for field in fields) for rule in rules] == [
        ("wrong_cable", 255, 40, False),
        ("flipped_connector", 254, 0.25, True),
    ]
    whole = manifest.saturation["breakfast_box"][1].saturation_threshold
    assert (whole, type(whole)) == (1.0, float), "a share of 1.0 must not come back as one pixel"


@pytest.mark.parametrize("layout", ["loco", "mvtec3d"])
def test_validation_is_a_split_of_its_own(converted, layout):
    case = converted(layout)
    folder = case.facts["traps"]["validation split"]
    own = [sample for source, sample in case.samples.items() if source.startswith(folder)]
    assert [(sample.split, sample.label) for sample in own] == [("val", 0)] * 2
    assert {shard.split for shard in case.report.manifest.shards} == {"train", "val", "test"}
