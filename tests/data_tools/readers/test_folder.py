"""What careless readers of the own folder get wrong, and trees that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.readers import read_source
from fmad_dist.base.errors import UserError
from tests.data_tools.readers.refusals import assert_refused, edit
from tests.data_tools.small_trees import noise, save, spot

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder/csv: image missing": (
        lambda t: (t / "nuts/no.0.png").unlink(),
        r"images.csv line \d+: .*no.0.png does not exist",
    ),
    "folder/csv: unknown column": (
        lambda t: edit(t / "images.csv", "defect_type", "kind"),
        "images.csv: column 'kind' is unknown",
    ),
    "folder/csv: unknown split": (
        lambda t: edit(t / "images.csv", ",val,", ",validation,"),
        "split is 'validation'; use one of train, val, test",
    ),
    "folder/csv: defect without mask": (
        lambda t: edit(t / "images.csv", "drawn/0.png;drawn/1.png", ""),
        "label anomaly with mask ''; name its mask",
    ),
    "folder/tree: tree without a mask": (
        lambda t: (t / "bolt/masks/scratch/a.png").unlink(),
        "a.jpg: its mask is missing; expected .*masks/scratch/a.png",
    ),
    "folder/tree: masks without images": (
        lambda t: shutil.rmtree(t / "bolt/scratch"),
        "masks/scratch: masks without a folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    assert_refused(converted, tmp_path, case, *BAD[case])


def sample_at(case, trap, suffix=""):
    return case.samples[case.facts["traps"][trap] + suffix]


def test_folder_rows_with_awkward_text(converted):
    case = converted("folder", "csv")
    sample = sample_at(case, "comma in a name")
    assert (sample.sample_id, len(sample.masks)) == ("tiny/bolt/test/scratch/line 3/scratched, bent", 2)
    assert case.samples["line 3/good/3.jpg"].split == "val"
    assert sample_at(case, "dot in a name").sample_id == "tiny/nut/train/good/nuts/no.0"


def test_folder_tree_splits_by_name_alone(converted):
    case = converted("folder", "tree")
    tested = {source for source, sample in case.samples.items() if sample.split == "test" and not sample.label}
    assert tested == {"bolt/good/c.png", "nut/good/c.png"}


def simple_tree(root: Path, normal: str = "good", masks: str = "masks", defect: str = "scratch") -> Path:
    for number in range(4):
        save(root / normal / f"{number}.png", noise(number))
    save(root / defect / "9.png", noise(9))
    save(root / masks / defect / "9.png", spot())
    return root


def read_folder(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for image in read_source("folder", root, "tiny").images:
        found.setdefault(image.class_name, set()).add(f"{image.split}/{image.defect_type}/{len(image.masks)}")
    return found


@pytest.mark.parametrize("normal", ["good", "ok", "OK", "Normal"])
@pytest.mark.parametrize("masks", ["masks", "mask", "ground_truth"])
def test_usual_names_of_folders_are_recognised(tmp_path, normal, masks):
    simple_tree(tmp_path / "nut", normal, masks, "ko")
    simple_tree(tmp_path / "bolt", defect="anomaly")
    expected = {"train/good/0", "test/good/0"}
    assert read_folder(tmp_path) == {"nut": expected | {"test/ko/1"}, "bolt": expected | {"test/anomaly/1"}}
    assert read_folder(tmp_path / "nut") == {"nut": expected | {"test/ko/1"}}


def test_two_folders_of_one_kind_are_named(tmp_path):
    save(simple_tree(tmp_path / "nut") / "mask/scratch/9.png", spot())
    with pytest.raises(UserError, match="nut: has two folders of masks, mask and masks; move all into masks"):
        read_folder(tmp_path)


def test_a_tree_that_is_split_already_is_of_another_layout(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "good/0.png", noise(0))
        save(tmp_path / split / "good/1.png", noise(1))
    with pytest.raises(UserError, match=r"not of the folder layout.*found test, train; it looks like --layout mvtec"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match=r"not of the mvtec layout.*it looks like --layout folder"):
        read_source("mvtec", simple_tree(tmp_path / "other/nut").parent, "tiny")


def test_a_table_from_a_spreadsheet(tmp_path):
    simple_tree(tmp_path)
    rows = [
        "image;class;split;label;mask",
        "good/0.png;nut;Train;Normal;",
        "scratch/9.png;nut;test;ANOMALY;masks/scratch/9.png",
    ]
    (tmp_path / "images.csv").write_text("\r\n".join(rows))
    assert read_folder(tmp_path) == {"nut": {"train/good/0", "test/anomaly/1"}}


def test_all_wrong_rows_are_told_together(tmp_path):
    simple_tree(tmp_path)
    rows = [
        "image,class,split,label",
        "good/0.png,nut,train,normal",
        "good/7.png,nut,train,normal",
        "good/1.png,..,train,normal",
    ]
    (tmp_path / "images.csv").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"^2 problems:\n.*line 3: .*7.png does not exist.*\n.*line 4: class is '..'"):
        read_folder(tmp_path)
