"""Real-IAD: five views of every part, and JSON files that say what each view shows.

    <root>/realiad_{256,512,1024,raw}/<class>/OK/S0001/<class>_0001_OK_C1_<time>.jpg
    <root>/realiad_*/<class>/NG/<code>/S0001/<class>_0001_NG_<code>_C2_<time>.{jpg,png}     png: the mask
    <root>/realiad_jsons[_sv|_fuiad_0.0|...][/realiad_jsons...]/<class>.json

Many images below NG show a view in which the part's defect is invisible: the label is `anomaly_class`, never the path.
Archives nest folders of one name in each other (`realiad_jsons/realiad_jsons`, `<class>/<class>`); both forms are read.
The images of one part share the group key of the official evaluation.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.readers.fields import first_problem
from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.realiad_counts import PARTS, VARIANTS, realiad
from data_tools.readers.source import (
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_source_folder,
    folders_in,
    source_tree,
)
from data_tools.readers.table import file_below
from fmad_dist.errors import UserError, first_line

LAYOUT = "realiad"
EXPECTED = "realiad_{256,512,1024,raw}/<class> beside realiad_jsons/<class>.json"
DEFECTS = ("AK", "BX", "CH", "HS", "PS", "QS", "YW", "ZW")
_NORMAL = "OK"
_GROUP = re.compile(r"([a-zA-Z][a-zA-Z0-9_]*_[0-9]{4}_[A-Z][A-Z_]*[A-Z])_(C[0-9])_")


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


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where the parts of the data set lie."""

    images: Path
    lists: Path
    benchmark: Benchmark


def read_realiad(root: Path, dataset: str) -> SourceTree:
    """All views that the JSON files list, for the classes whose images are there.

    Raises:
        UserError: the folder is missing or of another layout, several resolutions or splits lie side by side, or a
            JSON entry is wrong or names a missing file.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    folders = _find(root)
    files = sorted(folders.lists.glob("*.json"))
    present = {folder.name for folder in folders_in(folders.images)}
    unlisted = sorted(present - {path.stem for path in files})
    if unlisted:
        raise UserError(f"{folders.lists / unlisted[0]}.json: missing, but {folders.images} has that class; add it.")
    absent = [path for path in files if path.stem not in present and path.stem not in PARTS]
    if absent:
        raise UserError(f"{absent[0]}: its images are missing in {folders.images}; add the class or remove the list.")
    images = []
    for path in files:
        if path.stem in present:
            images += _read_list(root, folders.images, path, dataset)
    return source_tree(dataset, LAYOUT, root, images, folders.benchmark)


def _find(root: Path) -> _Folders:
    """The only folder of images and the JSON files that belong to it."""
    candidates = [path for path in folders_in(root) if re.fullmatch(r"realiad_(\d+|raw)", path.name)]
    base = root
    if not candidates and list(root.parent.glob("realiad_jsons*")):
        candidates, base = [root], root.parent
    variants = [path for path in folders_in(base) if path.name.startswith("realiad_jsons")]
    if not candidates or not variants:
        found = ", ".join(path.name for path in folders_in(root)[:6]) or "no folders"
        raise UserError(f"{root}: not of the realiad layout; expected {EXPECTED}, found {found}.")
    if len(candidates) > 1:
        several = ", ".join(path.name for path in candidates)
        raise UserError(f"{root}: holds several resolutions ({several}); give one of these folders as --source.")
    names = [path.name for path in variants]
    if len(variants) > 1 and "realiad_jsons" not in names:
        raise UserError(f"{base}: holds several splits ({', '.join(names)}); move all but one out.")
    lists = variants[names.index("realiad_jsons")] if "realiad_jsons" in names else variants[0]
    inner = lists / lists.name
    benchmark = realiad(VARIANTS.get(lists.name, OfficialCounts()), per_class=lists.name == "realiad_jsons")
    return _Folders(candidates[0], inner if inner.is_dir() else lists, benchmark)


def _read_list(root: Path, images: Path, path: Path, dataset: str) -> list[SourceImage]:
    lists = _parsed(path)
    folder = images / lists.meta.prefix
    if not (folder / "OK").is_dir() and (folder / path.stem).is_dir():
        folder /= path.stem  # the archive of a class held a folder of its own name
    found = []
    for split, entries in (("train", lists.train), ("test", lists.test)):
        for number, entry in enumerate(entries):
            where = f"{path} {split}[{number}]"
            if entry.category != path.stem:
                raise UserError(f"{where}: category {entry.category!r} in the list of {path.stem}; move the entry.")
            if split == "train" and entry.anomaly_class != _NORMAL:
                raise UserError(f"{where}: an anomalous training image; use a split that trains on {_NORMAL} only.")
            found.append(_record(root, folder, entry, dataset, split, where))
    if not lists.train:
        raise UserError(f"{path}: lists no training images; restore the file or remove the class.")
    return found


def _parsed(path: Path) -> _Lists:
    try:
        return _Lists.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; restore the file from the download.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions.") from None


def _record(root: Path, folder: Path, entry: _Entry, dataset: str, split: str, where: str) -> SourceImage:
    anomalous = entry.anomaly_class != _NORMAL
    image = file_below(folder, entry.image_path, where)
    if anomalous != (entry.mask_path is not None):
        fix = "name its mask" if anomalous else "set mask_path to null"
        raise UserError(f"{where}: anomaly_class {entry.anomaly_class} with mask_path {entry.mask_path!r}; {fix}.")
    matched = _GROUP.match(image.name)
    if not matched:
        raise UserError(f"{where}: {image.name} has no part number and view as in part_0001_OK_C1_...; rename it.")
    defect = entry.anomaly_class if anomalous else "good"
    return SourceImage(
        sample_id=f"{dataset}/{entry.category}/{split}/{defect}/{image.stem}",
        class_name=entry.category,
        split=split,
        label=int(anomalous),
        defect_type=defect,
        source=image.relative_to(root).as_posix(),
        image=image,
        masks=() if entry.mask_path is None else (file_below(folder, entry.mask_path, where),),
        group=matched[1],
        view=matched[2],
    )
