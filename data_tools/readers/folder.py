"""Anybody's own images: a CSV that lists them, or a simple tree.

    <root>/images.csv       image,class,split,label and optionally mask,defect_type,group,view
    or
    <root>/<class>/good/*.png                normal images
    <root>/<class>/<defect>/*.png            anomalous images, only for tests
    <root>/<class>/masks/<defect>/*.png      a mask of the same name for every anomalous image

Paths in the CSV are relative to the folder. split is train, val or test; label is normal or anomaly; an anomalous image
has one mask or several, separated by `;`. In the tree a fifth of the normal images of a class (at least one) becomes
test images: those whose file name has the smallest SHA-256, so the choice depends on the names alone.
"""

import hashlib
import re
from pathlib import Path

from data_tools.readers.mvtec import NORMAL, masks_by_image
from data_tools.readers.source import (
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_source_folder,
    folders_in,
    images_in,
    loose_images_in,
    source_tree,
)
from data_tools.readers.table import Row, file_below, read_table
from fmad_dist.errors import UserError

LAYOUT = "folder"
EXPECTED = "images.csv, or <class>/good and <class>/<defect> with <class>/masks/<defect>"
TABLE = "images.csv"
_MASKS = "masks"
_TEST_SHARE = 0.2


def read_folder(root: Path, dataset: str) -> SourceTree:
    """The images that `images.csv` lists, or those of the tree if there is no such file.

    Raises:
        UserError: the folder is missing or of neither form, a row is wrong, or images and masks do not fit.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    if (root / TABLE).is_file():
        rows = read_table(root / TABLE, ("image", "class", "split", "label"), ("mask", "defect_type", "group", "view"))
        images = [_listed(root, row, dataset) for row in rows]
        if not any(image.split == "train" for image in images):
            raise UserError(f"{root / TABLE}: no row has split train; mark the images to learn from.")
    else:
        images = [image for folder in _class_folders(root) for image in _read_class(root, folder, dataset)]
    return source_tree(dataset, LAYOUT, root, images, None)


def _listed(root: Path, row: Row, dataset: str) -> SourceImage:
    name, split = row["class"], row.choice("split", ("train", "val", "test"))
    anomalous = row.choice("label", ("normal", "anomaly")) == "anomaly"
    masks = [part.strip() for part in row["mask"].split(";") if part.strip()]
    defect = row["defect_type"] or ("anomaly" if anomalous else NORMAL)
    for column, value in (("class", name), ("defect_type", defect)):
        if not re.fullmatch(r"[^/\\\s][^/\\]*", value):
            raise UserError(f"{row.where}: {column} is {value!r}; give a name without slashes.")
    if anomalous and split != "test":
        raise UserError(f"{row.where}: an anomalous image in the split {split}; only normal images train, use test.")
    if anomalous != bool(masks):
        fix = "name its mask" if anomalous else "remove the mask"
        raise UserError(f"{row.where}: label {row['label']} with mask {row['mask']!r}; {fix}.")
    if anomalous == (defect == NORMAL):
        raise UserError(f"{row.where}: label {row['label']} with defect_type {defect!r}; correct one of them.")
    image = file_below(root, row["image"], row.where)
    below = image.relative_to(root)
    return SourceImage(
        sample_id=f"{dataset}/{name}/{split}/{defect}/{below.with_suffix('').as_posix()}",
        class_name=name,
        split=split,
        label=int(anomalous),
        defect_type=defect,
        source=below.as_posix(),
        image=image,
        masks=tuple(file_below(root, mask, row.where) for mask in masks),
        group=row["group"],
        view=row["view"],
    )


def _class_folders(root: Path) -> list[Path]:
    folders = folders_in(root)
    names = [folder.name for folder in folders]
    if NORMAL in names:
        raise UserError(f"{root}: looks like a single class; give its parent folder as --source.")
    if not any((folder / NORMAL).is_dir() for folder in folders):
        found = ", ".join(names[:6]) or "no folders"
        raise UserError(f"{root}: not of the folder layout; expected {EXPECTED}, found {found}.")
    for loose in loose_images_in(root):
        raise UserError(f"{loose}: an image outside a class folder; move it to <class>/{NORMAL} or a defect folder.")
    return folders


def _read_class(root: Path, folder: Path, dataset: str) -> list[SourceImage]:
    normal = images_in(folder / NORMAL)
    if len(normal) < 2:
        raise UserError(f"{folder / NORMAL}: {len(normal)} normal images; add some, one trains and one tests.")
    for loose in loose_images_in(folder):
        raise UserError(f"{loose}: an image outside a defect folder; move it to a folder such as {NORMAL}.")
    defects = [part for part in folders_in(folder) if part.name not in (NORMAL, _MASKS)]
    for masks in folders_in(folder / _MASKS):
        if masks.name not in {part.name for part in defects}:
            raise UserError(f"{masks}: masks without a folder {folder / masks.name}; add the images or remove them.")
    tested = _drawn(normal)
    images = [_found(root, path, dataset, "test" if path in tested else "train", ()) for path in normal]
    for part in defects:
        for path, mask in masks_by_image(images_in(part), folder / _MASKS / part.name, suffix="").items():
            images.append(_found(root, path, dataset, "test", (mask,)))
    return images


def _drawn(normal: list[Path]) -> set[Path]:
    ranked = sorted(normal, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return set(ranked[: max(1, round(_TEST_SHARE * len(ranked)))])


def _found(root: Path, path: Path, dataset: str, split: str, masks: tuple[Path, ...]) -> SourceImage:
    name, defect = path.relative_to(root).parts[:2]
    return SourceImage(
        sample_id=f"{dataset}/{name}/{split}/{defect}/{path.stem}",
        class_name=name,
        split=split,
        label=int(bool(masks)),
        defect_type=defect,
        source=path.relative_to(root).as_posix(),
        image=path,
        masks=masks,
    )
