"""What careless readers of VisA get wrong, and trees that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.readers import read_source
from fmad_dist.stream.manifest import load_manifest
from tests.data_tools.readers.refusals import assert_refused, edit

CSV = "split_csv/1cls.csv"
BAD_ANOMALY = "candle/Data/Images/Anomaly/000.JPG"

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "visa: no list": (lambda t: (t / CSV).unlink(), "1cls.csv: missing, but it says"),
    "visa: list without a column": (
        lambda t: edit(t / CSV, "object,split,label", "object,split,labels"),
        "1cls.csv: column label is missing",
    ),
    "visa: image missing": (lambda t: (t / BAD_ANOMALY).unlink(), r"line \d+: .*000.JPG does not ex"),
    "visa: mask missing": (
        lambda t: (t / "candle/Data/Masks/Anomaly/001.png").unlink(),
        r"1cls.csv line \d+: .*001.png does not exist",
    ),
    "visa: no mask named": (
        lambda t: edit(t / CSV, f"{BAD_ANOMALY},candle/Data/Masks/Anomaly/000.png", f"{BAD_ANOMALY},"),
        "label anomaly and mask ''; add its mask",
    ),
    "visa: unknown label": (lambda t: edit(t / CSV, ",anomaly,", ",bad,"), "label is 'bad'; use one"),
    "visa: two-class list": (
        lambda t: shutil.copyfile(t / "split_csv/2cls_highshot.csv", t / CSV),
        "an anomalous training image",
    ),
    "visa: path out of the tree": (lambda t: edit(t / CSV, BAD_ANOMALY, f"../{BAD_ANOMALY}"), "is not a path below"),
    "visa: repeated row": (
        lambda t: (t / CSV).write_text((t / CSV).read_text() + (t / CSV).read_text().splitlines()[1] + "\n"),
        "a second time; keep one row per image",
    ),
    "visa: cut row": (lambda t: edit(t / CSV, ",test,normal,", ",test"), "another number of cells"),
    "visa/converted: converted without a mask": (
        lambda t: (t / "VisA_pytorch/1cls/candle/ground_truth/bad/000.png").unlink(),
        "000.JPG: its mask is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    assert_refused(converted, tmp_path, case, *BAD[case])


def test_visa_split_comes_from_the_list(converted):
    case = converted("visa")
    train = sorted(source for source, s in case.samples.items() if s.split == "train" and s.class_name == "candle")
    stems = sorted(int(source[-8:-4]) for source in train)
    assert stems != list(range(len(stems))), "the training images must not be the first ones"
    rows = (case.source / "split_csv/1cls.csv").read_text(encoding="utf-8").splitlines()
    assert {row.split(",")[3] for row in rows if row.startswith("candle,train,normal")} == set(train)


def test_visa_ids_are_kept_and_the_stored_mask_is_binary(converted):
    case = converted("visa")
    assert load_manifest(case.options.out).mask_semantics == "class_id"
    first = case.samples["candle/Data/Images/Anomaly/000.JPG"]
    assert first.mask_ids == ((1, 3),)
    assert case.samples["candle/Data/Images/Anomaly/001.JPG"].mask_ids == ((1,),)
    assert set(np.unique(case.stored_pixels(first, first.masks[0]))) == {0, 255}
    published = case.published("candle/Data/Masks/Anomaly/000.png")
    assert set(np.unique(published)) == {0, 1, 3}


def test_visa_same_number_in_normal_and_anomaly(converted):
    case = converted("visa")
    ids = {case.samples[f"cashew/Data/Images/{kind}/000.JPG"].sample_id for kind in ("Normal", "Anomaly")}
    assert len(ids) == 2


def test_visa_forms_have_the_same_samples(converted):
    official, other = converted("visa"), converted("visa", "converted")
    assert official.dataset.sample_ids == other.dataset.sample_ids
    assert other.report.manifest.mask_semantics == "binary"
    for one, two in zip(
        *(sorted(c.samples.values(), key=lambda s: s.sample_id) for c in (official, other)), strict=True
    ):
        assert one.image.sha256 == two.image.sha256
        assert [span.sha256 for span in one.masks] == [span.sha256 for span in two.masks]


@pytest.mark.parametrize("below", ["", "VisA_pytorch", "VisA_pytorch/1cls"])
def test_visa_converted_is_found_with_and_without_its_folders(converted, below):
    case = converted("visa", "converted")
    tree = read_source("visa", case.source / below, "tiny")
    assert [image.sample_id for image in tree.images] == case.dataset.sample_ids


def test_a_subset_of_the_classes(converted, tmp_path):
    tree = shutil.copytree(converted("visa").source, tmp_path / "tree")
    whole = {image.class_name for image in read_source("visa", tree, "tiny").images}
    shutil.rmtree(tree / sorted(whole)[0])
    assert {image.class_name for image in read_source("visa", tree, "tiny").images} == whole - {sorted(whole)[0]}


@pytest.mark.parametrize("given", [".", "VisA"])
def test_the_split_beside_the_folder_of_classes(converted, tmp_path, given):
    tree = shutil.copytree(converted("visa").source, tmp_path / "tree/VisA")
    expected = {image.sample_id for image in read_source("visa", tree, "tiny").images}
    (tree / "split_csv").rename(tmp_path / "tree/split_csv")
    assert {image.sample_id for image in read_source("visa", tmp_path / "tree" / given, "tiny").images} == expected
