"""Anybody's own images: a CSV that lists them, or a simple tree.

    <root>/images.csv       image,class,split,label and optionally mask,defect_type,group,view
    or
    <root>/<class>/good/*.png                normal images
    <root>/<class>/<defect>/*.png            anomalous images, only for tests
    <root>/<class>/masks/<defect>/*.png      a mask of the same name for every anomalous image

The folder of the normal images may also be called `ok` or `normal`, that of the masks `mask` or `ground_truth`; a
single class may lie directly in the root, and is called like it.

Paths in the CSV are relative to the folder. split is train, val or test; label is normal or anomaly; an anomalous image
has one mask or several, separated by `;`. In the tree a fifth of the normal images of a class (at least one) becomes
test images: those whose file name has the smallest SHA-256, so the choice depends on the names alone.
"""

import hashlib
import re
from pathlib import Path

from data_tools.readers.listings import Row, file_below, read_table
from data_tools.readers.source_tree import (
    NORMAL,
    SourceFolder,
    SourceImage,
    SourceTree,
    another_layout,
    files_by_image,
    folders_in,
    images_in,
    normal_folders,
    refuse_loose_images,
)
from fmad_dist.base.errors import Problems, UserError

LAYOUT = "folder"
EXPECTED = "images.csv, or <class>/good and <class>/<defect> with <class>/masks/<defect>"
TABLE = "images.csv"
MASK_NAMES = ("masks", "mask", "ground_truth")
_TEST_SHARE = 0.2


def read(folder: SourceFolder) -> SourceTree:
    """The images that `images.csv` lists, or those of the tree if there is no such file.

    Raises:
        UserError: the folder is of neither form, a row is wrong, or images and masks do not fit.
    """
    table = folder.root / TABLE
    images: list[SourceImage] = []
    if table.is_file():
        rows = read_table(table, ("image", "class", "split", "label"), ("mask", "defect_type", "group", "view"))
        with Problems() as problems:
            for row in rows:
                with problems.noted():
                    images.append(_listed(folder, row))
        if not any(image.split == "train" for image in images):
            raise UserError(f"{table}: no row has split train; mark the images to learn from.")
    else:
        with Problems() as problems:
            for part in _class_folders(folder.root):
                with problems.noted():
                    images += _read_class(folder, part)
    return SourceTree(folder, LAYOUT, tuple(images))


def _listed(folder: SourceFolder, row: Row) -> SourceImage:
    root, name, split = folder.root, row["class"], row.choice("split", ("train", "val", "test"))
    anomalous = row.choice("label", ("normal", "anomaly")) == "anomaly"
    masks = [part.strip() for part in row["mask"].split(";") if part.strip()]
    defect = row["defect_type"] or ("anomaly" if anomalous else NORMAL)
    for column, value in (("class", name), ("defect_type", defect)):
        if not re.fullmatch(r"(?!\.{1,2}$)[^/\\\s][^/\\]*", value):
            raise UserError(f"{row.where}: {column} is {value!r}; give a name without slashes, other than . and ..")
    if anomalous and split != "test":
        raise UserError(f"{row.where}: an anomalous image in the split {split}; only normal images train, use test.")
    if anomalous != bool(masks):
        fix = "name its mask" if anomalous else "remove the mask"
        raise UserError(f"{row.where}: label {row['label']} with mask {row['mask']!r}; {fix}.")
    if anomalous == (defect == NORMAL):
        raise UserError(f"{row.where}: label {row['label']} with defect_type {defect!r}; correct one of them.")
    image = file_below(root, row["image"], row.where)
    own = tuple(file_below(root, mask, row.where) for mask in masks)
    below = image.relative_to(root).with_suffix("").as_posix()
    return SourceImage(folder, image, name, split, defect, own, group=row["group"], view=row["view"], name=below)


def _class_folders(root: Path) -> list[Path]:
    parts = folders_in(root)
    if normal_folders(root):
        return [root]
    split = [part for part in parts if part.name in ("train", "test") and (part / NORMAL).is_dir()]
    if split or not any(map(normal_folders, parts)):
        raise another_layout(root, LAYOUT, EXPECTED)
    refuse_loose_images(root, f"a class folder; move it to <class>/{NORMAL} or a defect folder")
    return parts


def _read_class(folder: SourceFolder, part: Path) -> list[SourceImage]:
    normals = _only_one(part, normal_folders(part), "normal images", part / NORMAL)
    all_masks = _only_one(
        part, [path for path in folders_in(part) if path.name in MASK_NAMES], "masks", part / MASK_NAMES[0]
    )
    normal = images_in(normals)
    if len(normal) < 2:
        raise UserError(f"{normals}: {len(normal)} normal images; add some, one trains and one tests.")
    refuse_loose_images(part, f"a defect folder; move it to a folder such as {NORMAL}")
    kinds = [kind for kind in folders_in(part) if kind not in (normals, all_masks)]
    tested = _tested(normal)
    images = [SourceImage(folder, path, part.name, "test" if path in tested else "train") for path in normal]
    with Problems() as problems:
        for masks in folders_in(all_masks):
            with problems.noted():
                if masks.name not in {kind.name for kind in kinds}:
                    fix = "add the images or remove them"
                    raise UserError(f"{masks}: masks without a folder {part / masks.name}; {fix}.")
        for kind in kinds:
            with problems.noted():
                for path, mask in files_by_image(images_in(kind), all_masks / kind.name).items():
                    images.append(SourceImage(folder, path, part.name, "test", kind.name, (mask,)))
    return images


def _only_one(part: Path, found: list[Path], what: str, expected: Path) -> Path:
    """The only folder of its kind in a class; `expected` if there is none."""
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"{part}: has two folders of {what}, {names}; move all into {expected.name}.")
    return found[0] if found else expected


def _tested(normal: list[Path]) -> set[Path]:
    """The normal images that become test images."""
    ranked = sorted(normal, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return set(ranked[: max(1, round(_TEST_SHARE * len(ranked)))])
