"""Trees in the layout of MVTec AD, which MPDD and most company data sets copied.

    <root>/<class>/train/good/000.png
    <root>/<class>/test/good/000.png
    <root>/<class>/test/<defect>/000.png
    <root>/<class>/ground_truth/<defect>/000_mask.png     (or 000.png, as re-published VisA trees have it)

Every decision uses folder names below the root, never text of the whole path. Masks are paired by name. A folder
`ground_truth/good` is not read: normal images have no defect by definition of the layout.
"""

from pathlib import Path

from data_tools.readers.official import Benchmark, OfficialCounts, counted
from data_tools.readers.source import (
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_source_folder,
    class_folders,
    folders_in,
    images_in,
    loose_images_in,
    source_tree,
)
from fmad_dist.errors import UserError

LAYOUT = "mvtec"
EXPECTED = "<class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"
NORMAL = "good"

MVTEC_AD = Benchmark(
    name="MVTec AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, M. Fauser, D. Sattlegger, C. Steger: MVTec AD - A Comprehensive Real-World Dataset for "
    "Unsupervised Anomaly Detection, CVPR 2019",
    classes=counted("""
        bottle | 209 | 20 | broken_large 20, broken_small 22, contamination 21
        cable | 224 | 58 | bent_wire 13, cable_swap 12, combined 11, cut_inner_insulation 14, cut_outer_insulation 10, \
            missing_cable 12, missing_wire 10, poke_insulation 10
        capsule | 219 | 23 | crack 23, faulty_imprint 22, poke 21, scratch 23, squeeze 20
        carpet | 280 | 28 | color 19, cut 17, hole 17, metal_contamination 17, thread 19
        grid | 264 | 21 | bent 12, broken 12, glue 11, metal_contamination 11, thread 11
        hazelnut | 391 | 40 | crack 18, cut 17, hole 18, print 17
        leather | 245 | 32 | color 19, cut 19, fold 17, glue 19, poke 18
        metal_nut | 220 | 22 | bent 25, color 22, flip 23, scratch 23
        pill | 267 | 26 | color 25, combined 17, contamination 21, crack 26, faulty_imprint 19, pill_type 9, scratch 24
        screw | 320 | 41 | manipulated_front 24, scratch_head 24, scratch_neck 25, thread_side 23, thread_top 23
        tile | 230 | 33 | crack 17, glue_strip 18, gray_stroke 16, oil 18, rough 15
        toothbrush | 60 | 12 | defective 30
        transistor | 213 | 60 | bent_lead 10, cut_lead 10, damaged_case 10, misplaced 10
        wood | 247 | 19 | color 8, combined 11, hole 10, liquid 10, scratch 21
        zipper | 240 | 32 | broken_teeth 19, combined 16, fabric_border 17, fabric_interior 16, rough 17, \
            split_teeth 18, squeezed_teeth 16
    """),
    total=OfficialCounts(3629, 0, 467, 1258),
)


def read_mvtec(root: Path, dataset: str) -> SourceTree:
    """Any tree of the layout; it is compared with MVTec AD if all its classes and defects have names of that benchmark.

    Raises:
        UserError: as `read_good_tree`.
    """
    images = read_good_tree(root, dataset)
    defects: dict[str, set[str]] = {image.class_name: set() for image in images}
    for image in images:
        if image.label:
            defects[image.class_name].add(image.defect_type)
    return source_tree(dataset, LAYOUT, root, images, MVTEC_AD if MVTEC_AD.covers(defects) else None)


def read_good_tree(root: Path, dataset: str) -> list[SourceImage]:
    """The images of an MVTec-style tree, with masks paired by name.

    Raises:
        UserError: the folder is missing or of another layout, a class has no training images, or a mask is missing or
            belongs to no image.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    folders = class_folders(root, LAYOUT, EXPECTED)
    return [image for folder in folders for image in _read_class(root, folder, dataset)]


def _read_class(root: Path, folder: Path, dataset: str) -> list[SourceImage]:
    unexpected = [path.name for path in folders_in(folder) if path.name not in ("train", "test", "ground_truth")]
    if unexpected:
        raise UserError(f"{folder / unexpected[0]}: not part of the mvtec layout; expected {EXPECTED}, move it out.")
    _check_train(folder)
    images = []
    for part in [folder / "train" / NORMAL, *folders_in(folder / "test")]:
        masks = {} if part.name == NORMAL else masks_by_image(images_in(part), folder / "ground_truth" / part.name)
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


def masks_by_image(images: list[Path], mask_folder: Path, suffix: str = "_mask") -> dict[Path, Path]:
    """The mask of every image of one defect folder: `<stem><suffix>` or `<stem>`.

    Raises:
        UserError: an image has no mask or two, or a mask has no image.
    """
    by_stem: dict[str, Path] = {}
    for mask in images_in(mask_folder):
        other = by_stem.setdefault(mask.stem, mask)
        if other is not mask:
            raise UserError(f"{mask}: {other.name} is a mask of the same name; keep one of them.")
    paired: dict[Path, Path] = {}
    for image in images:
        found = [by_stem[stem] for stem in sorted({f"{image.stem}{suffix}", image.stem}) if stem in by_stem]
        if not found:
            expected = mask_folder / f"{image.stem}{suffix}.png"
            raise UserError(f"{image}: its mask is missing; expected {expected}, add it or remove the image.")
        if len(found) > 1:
            raise UserError(f"{image}: has two masks, {found[0].name} and {found[1].name}; keep one of them.")
        paired[image] = found[0]
    unused = sorted(set(by_stem.values()) - set(paired.values()))
    if unused:
        where = images[0].parent if images else f"the empty folder {mask_folder.name}"
        raise UserError(f"{unused[0]}: no image in {where} belongs to this mask; rename it or remove it.")
    return paired


def _check_no_orphan_masks(folder: Path) -> None:
    for masks in folders_in(folder / "ground_truth"):
        if masks.name != NORMAL and images_in(masks) and not (folder / "test" / masks.name).is_dir():
            raise UserError(f"{masks}: masks without a folder test/{masks.name}; add the images or remove the masks.")
