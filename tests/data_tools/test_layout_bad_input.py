"""Every layout with something wrong: one sentence that names the file, and nothing left at the target."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_tools.sharder import Conversion, convert
from fmad_dist.errors import UserError


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def write_mask(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def values(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def change_mask(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_mask(path, change(values(path)))


def with_second_value(mask: np.ndarray) -> np.ndarray:
    mask[0, 0] = 7
    return mask


def entry(path: Path, split: str, number: int, **changes: object) -> None:
    lists = json.loads(path.read_bytes())
    lists[split][number].update(changes)
    path.write_text(json.dumps(lists), encoding="utf-8")


def cloud(path: Path, points: np.ndarray) -> None:
    tifffile.imwrite(path, points, photometric="minisblack", planarconfig="contig")


CSV = "split_csv/1cls.csv"
BAD_ANOMALY = "candle/Data/Images/Anomaly/000.JPG"
LOGICAL = "pushpins/ground_truth/logical_anomalies"
JSON = "realiad_jsons/audiojack.json"
POINTS = "bagel/train/good/xyz/000.tiff"

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
    "mvtec3d: cloud missing": (lambda t: (t / POINTS).unlink(), "000.png: its point cloud is missing"),
    "mvtec3d: cloud without image": (
        lambda t: (t / "bagel/train/good/rgb/000.png").unlink(),
        "xyz/000.tiff: no image in .*rgb belongs",
    ),
    "mvtec3d: cloud of another size": (
        lambda t: cloud(t / POINTS, np.ones((20, 30, 3), np.float32)),
        "000.tiff: the point cloud is 30x20 but its image is 48x48",
    ),
    "mvtec3d: cloud of another type": (
        lambda t: cloud(t / POINTS, np.ones((48, 48, 3), np.float64)),
        "000.tiff: float64 .* not float32",
    ),
    "mvtec3d: cloud is no TIFF": (lambda t: (t / POINTS).write_bytes(b"points"), "000.tiff: cannot be decoded"),
    "mvtec3d: mask missing": (
        lambda t: (t / "bagel/test/crack/gt/001.png").unlink(),
        "crack/rgb/001.png: its mask is missing; expected .*gt/001.png",
    ),
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
    "mpdd: mask missing": (
        lambda t: (t / "bracket_black/ground_truth/scratches/001_mask.png").unlink(),
        "scratches/001.png: its mask is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    spoil, message = BAD[case]
    layout, _, name = case.split(": ")[0].partition("/")
    tree = tmp_path / "tree"
    shutil.copytree(converted(layout, name or "official").source, tree)
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        convert(Conversion(layout, "tiny", tree, str(tmp_path / "out"), size=32, num_workers=1))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("layout", ["visa", "loco", "mvtec3d", "mpdd", "realiad", "folder"])
def test_another_layout(tmp_path, layout):
    (tmp_path / "other" / "pictures").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected .*found pictures"):
        convert(Conversion(layout, "tiny", tmp_path / "other", str(tmp_path / "out"), num_workers=1))
