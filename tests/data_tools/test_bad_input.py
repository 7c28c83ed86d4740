"""Every kind of bad input: one sentence that names the file, and no dataset at the target."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from small_trees import noise, save, spot

from data_tools.garbage import collect
from data_tools.sharder import convert
from fmad_dist.errors import UserError


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
    "unknown image type": (lambda t: (t / "nut/train/good/0.webp").write_bytes(b"x"), "0.webp: not one of the image"),
    "unknown folder": (lambda t: (t / "nut/tests").mkdir(), "nut/tests: not part of the mvtec layout"),
    "loose image": (lambda t: save(t / "nut/test/0.png", noise(1)), "nut/test/0.png: an image outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tree(options, tree, tmp_path, case):
    spoil, message = BAD[case]
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        convert(options())
    assert str(caught.value).count("\n") == 0
    collect(str(tmp_path / "out"), older_than=timedelta(0))  # what a later run could go on with
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


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


def test_single_class_given(options, tree):
    with pytest.raises(UserError, match="looks like a single class"):
        convert(options(source=tree / "bolt"))


def test_target_is_a_file(options, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="a file where the output folder should be"):
        convert(options(out=str(tmp_path / "file" / "out")))


def test_target_without_permission(options, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write"):
        convert(options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "lego"}, "--layout lego"),
        ({"dataset": "a/b"}, "--dataset 'a/b'"),
        ({"size": 0}, "--size 0"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"num_workers": -1}, "--workers -1"),
        ({"rendition": "tiny"}, "--rendition 'tiny'"),
    ],
)
def test_bad_option(options, change, message):
    with pytest.raises(UserError, match=message):
        convert(options(**change))


def test_error_in_a_worker_process_names_the_file(options, tree):
    cut_image(tree)
    with pytest.raises(UserError, match=r"nut/test/good/001.png: cannot be decoded"):
        convert(options(num_workers=2))
