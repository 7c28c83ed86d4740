"""What careless readers of Real-IAD get wrong, and trees that are refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.readers import read_source
from tests.data_tools.readers.refusals import assert_refused, entry

JSON = "realiad_jsons/audiojack.json"

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "realiad/nested: lists missing": (lambda t: shutil.rmtree(t / "realiad_jsons"), "not of the realiad layout"),
    "realiad/flat: list of a class missing": (lambda t: (t / JSON).unlink(), "audiojack.json: missing"),
    "realiad/flat: no JSON": (lambda t: (t / JSON).write_text("{"), "audiojack.json: the whole file is"),
    "realiad/flat: wrong path": (
        lambda t: entry(t / JSON, "test", 3, image_path="OK/S0002/x.jpg"),
        r"audiojack.json test\[3\]: .*OK/S0002/x.jpg does not exist",
    ),
    "realiad/flat: unknown code": (
        lambda t: entry(t / JSON, "test", 5, anomaly_class="XX"),
        "audiojack.json: test.5.anomaly_class is wrong",
    ),
    "realiad/flat: defect without mask": (
        lambda t: entry(t / JSON, "test", 5, mask_path=None),
        r"test\[5\]: anomaly_class AK with mask_path None; name its mask",
    ),
    "realiad/flat: defect in training": (
        lambda t: entry(t / JSON, "train", 0, anomaly_class="AK"),
        r"train\[0\]: an anomalous training image",
    ),
    "realiad/flat: two resolutions": (
        lambda t: (t / "realiad_512").mkdir(),
        r"holds several resolutions \(realiad_256, realiad_512\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    assert_refused(converted, tmp_path, case, *BAD[case])


@pytest.mark.parametrize("tree", ["flat", "nested"])
def test_normal_view_of_a_defective_part(converted, tree):
    case = converted("realiad", tree)
    below_ng = [sample for source, sample in case.samples.items() if "/NG/" in source]
    assert {sample.label for sample in below_ng} == {0, 1}
    normal = next(s for s in below_ng if s.group == "audiojack_0001_NG_AK" and s.view == "C2")
    assert (normal.label, normal.defect_type, normal.masks) == (0, "good", ())
    assert {sample.defect_type for sample in below_ng} == {"good", "AK", "BX", "CH", "HS", "PS", "QS", "YW", "ZW"}


@pytest.mark.parametrize("tree", ["flat", "nested"])
def test_views_of_a_part_share_a_group(converted, tree):
    case = converted("realiad", tree)
    groups: dict[str, list[str]] = {}
    for sample in case.samples.values():
        groups.setdefault(sample.group, []).append(sample.view)
    assert {tuple(sorted(views)) for views in groups.values()} == {("C1", "C2", "C3", "C4", "C5")}
    assert {"audiojack_0001_OK", "audiojack_0001_NG_AK"} <= groups.keys(), "one number, two parts"
    official = re.compile(r"([a-zA-Z][a-zA-Z0-9_]*_[0-9]{4}_[A-Z][A-Z_]*[A-Z])_C[0-9]_")  # its README, S-AUROC
    assert all(official.findall(source) == [sample.group] for source, sample in case.samples.items())


def test_realiad_masks_are_no_images(converted):
    assert not any(source.endswith(".png") for source in converted("realiad", "flat").samples)


def test_realiad_nestings_have_the_same_samples(converted):
    flat, nested = converted("realiad", "flat"), converted("realiad", "nested")
    assert flat.dataset.sample_ids == nested.dataset.sample_ids


def test_realiad_all_views_are_preferred_to_the_single_view_split(converted):
    case = converted("realiad", "flat")
    assert (case.source / "realiad_jsons_sv").is_dir()
    assert {sample.view for sample in case.samples.values()} == {"C1", "C2", "C3", "C4", "C5"}


def test_realiad_resolution_folder_as_source(converted):
    case = converted("realiad", "flat")
    tree = read_source("realiad", case.source / "realiad_256", "tiny")
    assert [image.sample_id for image in tree.images] == case.dataset.sample_ids
