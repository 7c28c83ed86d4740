"""Trees in the layout of MVTec AD, which MPDD and most company data sets copied.

    <root>/<class>/train/good/000.png
    <root>/<class>/test/good/000.png
    <root>/<class>/test/<defect>/000.png
    <root>/<class>/ground_truth/<defect>/000_mask.png     (or 000.png, as re-published VisA trees have it)

Every decision uses folder names below the root, never text of the whole path. Masks are paired by name. A folder
`ground_truth/good` is not read: normal images have no defect by definition of the layout.
"""

from pathlib import Path

from data_tools.readers.provenance import provenance_of
from data_tools.readers.source import (
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_source_folder,
    check_unique,
    folders_in,
    images_in,
    loose_images_in,
)
from fmad_dist.errors import UserError

LAYOUT = "mvtec"
EXPECTED = "<class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"
NORMAL = "good"


def read_mvtec(root: Path, dataset: str) -> SourceTree:
    """The images of an MVTec-style tree, sorted by sample id, with masks paired by name.

    Raises:
        UserError: the folder is missing or of another layout, a class has no training images, a mask is missing or
            belongs to no image, or two files would get the same sample id.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    class_folders = _class_folders(root)
    images = [image for folder in class_folders for image in _read_class(root, folder, dataset)]
    check_unique(images)
    found = provenance_of(root, class_folders)
    ordered = tuple(sorted(images, key=lambda image: image.sample_id))
    return SourceTree(dataset, LAYOUT, root, ordered, found.licence, found.source)


def _class_folders(root: Path) -> list[Path]:
    folders = folders_in(root)
    names = [folder.name for folder in folders]
    if "train" in names:
        raise UserError(f"{root}: looks like a single class of the mvtec layout; give its parent folder as --source.")
    if not any((folder / "train").is_dir() for folder in folders):
        found = ", ".join(names[:6]) or "no folders"
        raise UserError(f"{root}: not of the mvtec layout; expected {EXPECTED}, found {found}.")
    return folders


def _read_class(root: Path, folder: Path, dataset: str) -> list[SourceImage]:
    unexpected = [path.name for path in folders_in(folder) if path.name not in ("train", "test", "ground_truth")]
    if unexpected:
        raise UserError(f"{folder / unexpected[0]}: not part of the mvtec layout; expected {EXPECTED}, move it out.")
    _check_train(folder)
    images = []
    for part in [folder / "train" / NORMAL, *folders_in(folder / "test")]:
        masks = {} if part.name == NORMAL else _masks_by_image(part, folder / "ground_truth" / part.name)
        for path in images_in(part):
            images.append(_record(root, path, dataset, masks))
    _check_no_orphan_masks(folder)
    return images


def _record(root: Path, path: Path, dataset: str, masks: dict[Path, Path]) -> SourceImage:
    class_name, split, defect = path.relative_to(root).parts[:3]
    return SourceImage(
        sample_id=f"{dataset}/{class_name}/{split}/{defect}/{path.stem}",
        class_name=class_name,
        split=split,
        label=int(defect != NORMAL),
        defect_type=defect,
        source=path.relative_to(root).as_posix(),
        image=path,
        masks=(masks[path],) if path in masks else (),
    )


def _check_train(folder: Path) -> None:
    train = folder / "train"
    others = [path for path in folders_in(train) if path.name != NORMAL]
    if others:
        raise UserError(f"{others[0]}: training images must be normal; only train/{NORMAL} is read, move it to test.")
    if not images_in(train / NORMAL):
        raise UserError(f"{train / NORMAL}: no training images for class {folder.name}; add some or remove the class.")
    for loose in [*loose_images_in(train), *loose_images_in(folder / "test")]:
        raise UserError(f"{loose}: an image outside a defect folder; move it to a folder such as {NORMAL}.")


def _masks_by_image(test_folder: Path, mask_folder: Path) -> dict[Path, Path]:
    """The mask of every image of one defect folder.

    Raises:
        UserError: an image has no mask or two, or a mask has no image.
    """
    by_stem: dict[str, Path] = {}
    for mask in images_in(mask_folder):
        other = by_stem.setdefault(mask.stem, mask)
        if other is not mask:
            raise UserError(f"{mask}: {other.name} is a mask of the same name; keep one of them.")
    paired: dict[Path, Path] = {}
    for image in images_in(test_folder):
        found = [by_stem[stem] for stem in (f"{image.stem}_mask", image.stem) if stem in by_stem]
        if not found:
            expected = mask_folder / f"{image.stem}_mask.png"
            raise UserError(f"{image}: its mask is missing; expected {expected}, add it or remove the image.")
        if len(found) > 1:
            raise UserError(f"{image}: has two masks, {found[0].name} and {found[1].name}; keep one of them.")
        paired[image] = found[0]
    unused = sorted(set(by_stem.values()) - set(paired.values()))
    if unused:
        raise UserError(f"{unused[0]}: no image in {test_folder} belongs to this mask; rename it or remove it.")
    return paired


def _check_no_orphan_masks(folder: Path) -> None:
    for masks in folders_in(folder / "ground_truth"):
        if masks.name != NORMAL and images_in(masks) and not (folder / "test" / masks.name).is_dir():
            raise UserError(f"{masks}: masks without a folder test/{masks.name}; add the images or remove the masks.")
