"""What careless readers of MVTec AD and MPDD get wrong, and trees that are refused."""

import os
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from data_tools.conversion.convert import convert
from data_tools.garbage import collect
from fmad_dist.base.errors import UserError
from tests.data_tools.official_trees import SIZE, nearest
from tests.data_tools.readers.refusals import assert_refused, assert_sentences
from tests.data_tools.small_trees import noise, save, spot


def rename_mask(tree: Path) -> None:
    (tree / "bolt/ground_truth/hole/000_mask.png").rename(tree / "bolt/ground_truth/hole/00_mask.png")


def cut_image(tree: Path) -> None:
    path = tree / "nut/test/good/001.png"
    path.write_bytes(path.read_bytes()[:-400])


def empty_train(tree: Path) -> None:
    for path in (tree / "nut/train/good").iterdir():
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing mask": (lambda t: (t / "bolt/ground_truth/hole/000_mask.png").unlink(), "000.png: its mask is missing"),
    "misnamed mask": (rename_mask, "000.png: its mask is missing"),
    "mask without image": (lambda t: save(t / "bolt/ground_truth/hole/7_mask.png", spot()), "no image in .* belongs"),
    "masks without folder": (lambda t: save(t / "nut/ground_truth/dent/0_mask.png", spot()), "without a folder"),
    "two masks": (lambda t: save(t / "bolt/ground_truth/hole/000.png", spot()), "has two masks"),
    "other mask size": (
        lambda t: save(t / "bolt/ground_truth/hole/001_mask.png", spot(30, 20)),
        "001_mask.png: the mask is 20x30 but its image is 40x40",
    ),
    "empty mask": (
        lambda t: save(t / "bolt/ground_truth/hole/001_mask.png", np.zeros((40, 40), np.uint8)),
        "001_mask.png: the mask is empty",
    ),
    "truncated image": (cut_image, "nut/test/good/001.png: cannot be decoded"),
    "empty file": (lambda t: (t / "nut/test/good/001.png").write_bytes(b""), "001.png: cannot be decoded"),
    "no training images": (empty_train, "nut/train/good: no training images"),
    "same id twice": (lambda t: save(t / "nut/train/good/000.jpg", noise(1)), "same sample id"),
    "same key twice": (
        lambda t: [save(t / "nut/train/good" / name, noise(1)) for name in ("a.b.png", "a_b.png")],
        "same sample id",
    ),
    "defective training image": (lambda t: save(t / "nut/train/bad/0.png", noise(1)), "must be normal"),
    "unknown image type": (lambda t: (t / "nut/train/good/0.heic").write_bytes(b"x"), "0.heic: not one of the image"),
    "unknown folder": (lambda t: (t / "nut/tests").mkdir(), "nut/tests: not part of the mvtec layout"),
    "loose image": (lambda t: save(t / "nut/test/0.png", noise(1)), "nut/test/0.png: an image outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tree(options, tree, tmp_path, case):
    spoil, message = BAD[case]
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        convert(options())
    assert_sentences(caught.value)
    collect(str(tmp_path / "out"), older_than=timedelta(0))  # what a later run could go on with
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_missing_mask_of_mpdd(converted, tmp_path):
    def spoil(tree: Path) -> None:
        (tree / "bracket_black/ground_truth/scratches/001_mask.png").unlink()

    assert_refused(converted, tmp_path, "mpdd: mask missing", spoil, "scratches/001.png: its mask is missing")


def test_bad_tree_leaves_the_old_dataset(options, tree, tmp_path):
    convert(options())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    cut_image(tree)
    with pytest.raises(UserError):
        convert(options())
    found = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert before.items() <= found.items()
    collect(str(tmp_path / "out"), older_than=timedelta(0))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_missing_source(options, tmp_path):
    with pytest.raises(UserError, match="nowhere: the source folder does not exist"):
        convert(options(source=tmp_path / "nowhere"))


def test_source_of_another_layout(options, tmp_path):
    (tmp_path / "other" / "Data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected <class>/train/good.*found Data"):
        convert(options(source=tmp_path / "other"))


def test_a_single_class_is_called_like_its_folder(options, tree, monkeypatch):
    report = convert(options(source=tree / "bolt"))
    assert list(report.manifest.classes) == ["bolt"]
    monkeypatch.chdir(tree / "bolt")
    assert not convert(options(source=Path())).written, "the same folder by another path"


def test_all_problems_of_a_tree_are_told_together(options, tree):
    for name in ("bolt", "nut"):
        (tree / name / "ground_truth/hole/000_mask.png").unlink()
    (tree / "nut/test/good/x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^3 problems:") as caught:
        convert(options())
    assert [str(problem).partition(": ")[2][:20] for problem in caught.value.problems] == [
        "its mask is missing;",
        "not one of the image",
        "its mask is missing;",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_pictures_are_counted_and_ten_are_named(options, tree, workers):
    for number in range(12):
        save(tree / f"nut/test/hole/{number:03d}.png", noise(number))
        save(tree / f"nut/ground_truth/hole/{number:03d}_mask.png", spot() * (number == 5))
    cut_image(tree)
    with pytest.raises(UserError, match=r"^12 problems:") as caught:
        convert(options(num_workers=workers))
    assert len(caught.value.problems) == 12
    assert str(caught.value).count("\n- ") == 11
    assert str(caught.value).endswith("\n- and 2 more")


@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("name", ["ok", "Normal", "OK"])
def test_normals_of_another_name_are_to_be_renamed(options, tree, where, name):
    (tree / "nut" / where / "good").rename(tree / "nut" / where / name)
    with pytest.raises(UserError, match=rf"nut/{where}/{name}: .*rename it to good"):
        convert(options())


def test_accents_of_two_forms_are_one_name(options, tree):
    image = save(tree / "bolt/test/hole" / unicodedata.normalize("NFC", "trou_é.png"), noise(5))
    save(tree / "bolt/ground_truth/hole" / unicodedata.normalize("NFD", "trou_é_mask.png"), spot())
    assert convert(options()).manifest.classes["bolt"].defects == {"hole": 3}
    assert image.exists()


def test_a_name_that_is_no_utf8_is_named(options, tree):
    folder = os.fsencode(tree / "bolt/train/good")
    with open(folder + b"/caf\xe9.png", "wb") as file:
        file.write((tree / "bolt/train/good/000.png").read_bytes())
    with pytest.raises(UserError, match=r"caf\\udce9\.png: the bytes of this name are no UTF-8; rename"):
        convert(options())


@pytest.mark.parametrize("layout", ["mvtec", "mpdd"])
def test_one_pixel_defect(converted, layout):
    case = converted(layout)
    (fact,) = [f for f in case.facts["images"] if [m["pixels"] for m in f["masks"]] == [1]]
    sample = case.samples[fact["source"]]
    stored = case.stored_pixels(sample, sample.masks[0])
    assert np.argwhere(stored).tolist() == [[100 * SIZE // 160, 75 * SIZE // 120]]
    assert not nearest(case.published(fact["masks"][0]["file"])).any(), "nearest alone would have lost it"
    assert case.report.remarks.counts["pooled"] == 1


@pytest.mark.parametrize("layout", ["mvtec", "mpdd"])
def test_mask_of_several_parts(converted, layout):
    from scipy.ndimage import label

    case = converted(layout)
    name = case.facts["traps"]["mask of several parts"]
    (fact,) = [f for f in case.facts["images"] if name in [m["file"] for m in f["masks"]]]
    sample = case.samples[fact["source"]]
    assert label(case.stored_pixels(sample, sample.masks[0]))[1] == 2


def test_greyscale_class_becomes_rgb(converted):
    case = converted("mvtec")
    sample = case.samples["grid/train/good/000.png"]
    assert case.published("grid/train/good/000.png").ndim == 2
    assert case.stored_pixels(sample, sample.image).shape == (SIZE, SIZE, 3)
