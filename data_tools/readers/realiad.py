"""Real-IAD: five views of every part, and JSON files that say what each view shows.

    <root>/realiad_{256,512,1024,raw}/<class>/OK/S0001/<class>_0001_OK_C1_<time>.jpg
    <root>/realiad_*/<class>/NG/<code>/S0001/<class>_0001_NG_<code>_C2_<time>.{jpg,png}     png: the mask
    <root>/realiad_jsons[_sv|_fuiad_0.0|...][/realiad_jsons...]/<class>.json

Many images below NG show a view in which the part's defect is invisible: the label is `anomaly_class`, never the path.
Archives nest folders of one name in each other (`realiad_jsons/realiad_jsons`, `<class>/<class>`); both forms are read.
The images of one part share the group key of the official evaluation.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from data_tools.readers.listings import file_below, read_json
from data_tools.readers.official import Benchmark, OfficialCounts, counted
from data_tools.readers.source_tree import NORMAL, SourceFolder, SourceImage, SourceTree, another_layout, folders_in
from fmad_dist.base.errors import Problems, UserError

LAYOUT = "realiad"
EXPECTED = "realiad_{256,512,1024,raw}/<class> beside realiad_jsons/<class>.json"
_OK = "OK"  # what the lists call normal
_GROUP = re.compile(r"([a-zA-Z][a-zA-Z0-9_]*_[0-9]{4}_[A-Z][A-Z_]*[A-Z])_(C[0-9])_")

CLASSES = counted("""
    audiojack | ? | 0 | 2519 | 1296; bottle_cap | ? | 0 | 2154 | 1631; button_battery | ? | 0 | 1640 | 2150
    end_cap | ? | 0 | 1622 | 2183; eraser | ? | 0 | 2347 | 1488; fire_hood | ? | 0 | 2420 | 1350
    mint | ? | 0 | 2371 | 2099; mounts | ? | 0 | 2462 | 1338; pcb | ? | 0 | 1486 | 2289
    phone_battery | ? | 0 | 2240 | 1550; plastic_nut | ? | 0 | 2509 | 1246; plastic_plug | ? | 0 | 2361 | 1419
    porcelain_doll | ? | 0 | 2535 | 1255; regulator | ? | 0 | 2775 | 1080; rolled_strip_base | ? | 0 | 1280 | 2525
    sim_card_set | ? | 0 | 1716 | 2069; switch | ? | 0 | 1826 | 1994; tape | ? | 0 | 2407 | 1443
    terminalblock | ? | 0 | 1822 | 2008; toothbrush | ? | 0 | 1753 | 2027; toy | ? | 0 | 1585 | 2190
    toy_brick | ? | 0 | 2234 | 1536; transistor1 | ? | 0 | 1638 | 2117; u_block | ? | 0 | 2526 | 1214
    usb | ? | 0 | 2066 | 1754; usb_adaptor | ? | 0 | 2340 | 1520; vcpill | ? | 0 | 2295 | 1470
    wooden_beads | ? | 0 | 2231 | 1684; woodstick | ? | 0 | 2677 | 1073; zipper | ? | 0 | 1419 | 2331
""")

# realiad_jsons_sv keeps view C1 only; the fuiad splits put a share of anomalous images into the training set.
TOTALS = {
    "realiad_jsons": OfficialCounts(36465, 0, 63256, 51329),
    "realiad_jsons_sv": OfficialCounts(10408, 0, 10387, 9415),
    "realiad_jsons_fuiad_0.0": OfficialCounts(57840, 0, 20157, 9843),
}


def realiad(total: OfficialCounts, per_class: bool) -> Benchmark:
    """Real-IAD with the totals of one of its splits; counts of classes are published for the split with all views."""
    return Benchmark(
        name="Real-IAD",
        licence="unknown",
        citation="C. Wang, W. Zhu, B.-B. Gao, Z. Gan, J. Zhang, Z. Gu, S. Qian, M. Chen, L. Ma: Real-IAD: A Real-World "
        "Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection, CVPR 2024",
        classes=CLASSES if per_class else dict.fromkeys(CLASSES, OfficialCounts()),
        total=total,
    )


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    category: str
    anomaly_class: Literal["OK", "AK", "BX", "CH", "HS", "PS", "QS", "YW", "ZW"]
    image_path: str
    mask_path: str | None


class _Meta(BaseModel):
    prefix: str
    normal_class: Literal["OK"]


class _Lists(BaseModel):
    meta: _Meta
    train: list[_Entry]
    test: list[_Entry]


def read(folder: SourceFolder) -> SourceTree:
    """All views that the JSON files list, for the classes whose images are there.

    Raises:
        UserError: the folder is of another layout, several resolutions or splits lie side by side, or a JSON entry is
            wrong or names a missing file.
    """
    images, lists, benchmark = _find(folder.root)
    files = sorted(lists.glob("*.json"))
    present = {path.name for path in folders_in(images)}
    unlisted = sorted(present - {path.stem for path in files})
    if unlisted:
        raise UserError(f"{lists / unlisted[0]}.json: missing, but {images} has that class; add it.")
    absent = [path for path in files if path.stem not in present and path.stem not in CLASSES]
    if absent:
        raise UserError(f"{absent[0]}: its images are missing in {images}; add the class or remove the list.")
    listed: list[SourceImage] = []
    with Problems() as problems:
        for path in files:
            with problems.noted():
                if path.stem in present:
                    listed += _read_list(folder, images, path)
    return SourceTree(folder, LAYOUT, tuple(listed), benchmark)


def _find(root: Path) -> tuple[Path, Path, Benchmark]:
    """The only folder of images, that of the JSON files that belong to it, and the benchmark with their totals."""
    candidates = [path for path in folders_in(root) if re.fullmatch(r"realiad_(\d+|raw)", path.name)]
    base = root
    if not candidates and list(root.parent.glob("realiad_jsons*")):
        candidates, base = [root], root.parent
    variants = [path for path in folders_in(base) if path.name.startswith("realiad_jsons")]
    if not candidates or not variants:
        raise another_layout(root, LAYOUT, EXPECTED)
    if len(candidates) > 1:
        several = ", ".join(path.name for path in candidates)
        raise UserError(f"{root}: holds several resolutions ({several}); give one of these folders as --source.")
    names = [path.name for path in variants]
    if len(variants) > 1 and "realiad_jsons" not in names:
        raise UserError(f"{base}: holds several splits ({', '.join(names)}); move all but one out.")
    lists = variants[names.index("realiad_jsons")] if "realiad_jsons" in names else variants[0]
    inner = lists / lists.name
    benchmark = realiad(TOTALS.get(lists.name, OfficialCounts()), per_class=lists.name == "realiad_jsons")
    return candidates[0], inner if inner.is_dir() else lists, benchmark


def _read_list(folder: SourceFolder, images: Path, path: Path) -> list[SourceImage]:
    lists = read_json(path, TypeAdapter(_Lists))
    part = images / lists.meta.prefix
    if not (part / "OK").is_dir() and (part / path.stem).is_dir():
        part /= path.stem  # the archive of a class held a folder of its own name
    if not lists.train:
        raise UserError(f"{path}: lists no training images; restore the file or remove the class.")
    found = []
    with Problems() as problems:
        for split, entries in (("train", lists.train), ("test", lists.test)):
            for number, entry in enumerate(entries):
                with problems.noted():
                    found.append(_image(folder, part, entry, split, f"{path} {split}[{number}]", path.stem))
    return found


def _image(folder: SourceFolder, part: Path, entry: _Entry, split: str, where: str, category: str) -> SourceImage:
    anomalous = entry.anomaly_class != _OK
    if entry.category != category:
        raise UserError(f"{where}: category {entry.category!r} in the list of {category}; move the entry.")
    if split == "train" and anomalous:
        raise UserError(f"{where}: an anomalous training image; use a split that trains on {_OK} only.")
    image = file_below(part, entry.image_path, where)
    if anomalous != (entry.mask_path is not None):
        fix = "name its mask" if anomalous else "set mask_path to null"
        raise UserError(f"{where}: anomaly_class {entry.anomaly_class} with mask_path {entry.mask_path!r}; {fix}.")
    matched = _GROUP.match(image.name)
    if not matched:
        raise UserError(f"{where}: {image.name} has no part number and view as in part_0001_OK_C1_...; rename it.")
    defect = entry.anomaly_class if anomalous else NORMAL
    masks = () if entry.mask_path is None else (file_below(part, entry.mask_path, where),)
    return SourceImage(folder, image, entry.category, split, defect, masks, group=matched[1], view=matched[2])
