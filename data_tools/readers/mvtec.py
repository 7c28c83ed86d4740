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
from data_tools.readers.source_tree import (
    NORMAL,
    NORMAL_NAMES,
    SourceFolder,
    SourceImage,
    SourceTree,
    check_folder_names,
    check_some_train,
    class_folders,
    files_by_image,
    folders_in,
    images_in,
    normal_folders,
    refuse_loose_images,
)
from fmad_dist.base.errors import Problems, UserError

LAYOUT = "mvtec"
EXPECTED = "<class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"

MVTEC_AD = Benchmark(
    name="MVTec AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, M. Fauser, D. Sattlegger, C. Steger: MVTec AD - A Comprehensive Real-World Dataset for "
    "Unsupervised Anomaly Detection, CVPR 2019",
    classes=counted("""
        bottle | 209 | 0 | 20 | broken_large 20, broken_small 22, contamination 21
        cable | 224 | 0 | 58 | bent_wire 13, cable_swap 12, combined 11, cut_inner_insulation 14, \
            cut_outer_insulation 10, missing_cable 12, missing_wire 10, poke_insulation 10
        capsule | 219 | 0 | 23 | crack 23, faulty_imprint 22, poke 21, scratch 23, squeeze 20
        carpet | 280 | 0 | 28 | color 19, cut 17, hole 17, metal_contamination 17, thread 19
        grid | 264 | 0 | 21 | bent 12, broken 12, glue 11, metal_contamination 11, thread 11
        hazelnut | 391 | 0 | 40 | crack 18, cut 17, hole 18, print 17
        leather | 245 | 0 | 32 | color 19, cut 19, fold 17, glue 19, poke 18
        metal_nut | 220 | 0 | 22 | bent 25, color 22, flip 23, scratch 23
        pill | 267 | 0 | 26 | color 25, combined 17, contamination 21, crack 26, faulty_imprint 19, \
            pill_type 9, scratch 24
        screw | 320 | 0 | 41 | manipulated_front 24, scratch_head 24, scratch_neck 25, thread_side 23, thread_top 23
        tile | 230 | 0 | 33 | crack 17, glue_strip 18, gray_stroke 16, oil 18, rough 15
        toothbrush | 60 | 0 | 12 | defective 30
        transistor | 213 | 0 | 60 | bent_lead 10, cut_lead 10, damaged_case 10, misplaced 10
        wood | 247 | 0 | 19 | color 8, combined 11, hole 10, liquid 10, scratch 21
        zipper | 240 | 0 | 32 | broken_teeth 19, combined 16, fabric_border 17, fabric_interior 16, rough 17, \
            split_teeth 18, squeezed_teeth 16
    """),
    total=OfficialCounts(3629, 0, 467, 1258),
)

MPDD = Benchmark(
    name="MPDD",
    licence="CC BY-NC-SA 4.0",
    citation="S. Jezek, M. Jonak, R. Burget, P. Dvorak, M. Skotak: Deep learning-based defect detection of metal "
    "parts: evaluating current methods in complex conditions, ICUMT 2021",
    classes=counted("""
        bracket_black | 289 | 0 | 32 | hole 12, scratches 35
        bracket_brown | 185 | 0 | 26 | bend_and_parts_mismatch 17, parts_mismatch 34
        bracket_white | 110 | 0 | 30 | defective_painting 13, scratches 17
        connector | 128 | 0 | 30 | parts_mismatch 14
        metal_plate | 54 | 0 | 26 | major_rust 14, scratches 34, total_rust 23
        tubes | 122 | 0 | 32 | anomalous 69
    """),
    total=OfficialCounts(888, 0, 176, 282),
)


def read(folder: SourceFolder) -> SourceTree:
    """Any tree of the layout; it is compared with MVTec AD if all its classes and defects have names of that benchmark.

    Raises:
        UserError: as `read_good_tree`.
    """
    images = read_good_tree(folder, folder.root)
    defects: dict[str, set[str]] = {image.class_name: set() for image in images}
    for image in images:
        if image.label:
            defects[image.class_name].add(image.defect_type)
    return SourceTree(folder, LAYOUT, images, MVTEC_AD if MVTEC_AD.covers(defects) else None)


def read_mpdd(folder: SourceFolder) -> SourceTree:
    """MPDD (metal parts): the layout of MVTec AD to the letter, with its own classes and counts. Raises as `read`."""
    return SourceTree(folder, "mpdd", read_good_tree(folder, folder.root), MPDD)


def read_good_tree(folder: SourceFolder, root: Path) -> tuple[SourceImage, ...]:
    """The images of an MVTec-style tree at or below the source folder, with masks paired by name.

    Raises:
        UserError: the tree is of another layout, a class has no training images, or a mask is missing or belongs to no
            image.
    """
    images: list[SourceImage] = []
    with Problems() as problems:
        for part in class_folders(root, LAYOUT, EXPECTED):
            with problems.noted():
                images += _read_class(folder, part)
    return tuple(images)


def _read_class(folder: SourceFolder, part: Path) -> list[SourceImage]:
    check_folder_names(part, ("train", "test", "ground_truth"), LAYOUT)
    train, test, truth = part / "train", part / "test", part / "ground_truth"
    for path in folders_in(train):
        if path.name != NORMAL:
            fix = f"rename it to {NORMAL}" if path.name.lower() in NORMAL_NAMES else "move it to test"
            raise UserError(f"{path}: training images must be normal; only train/{NORMAL} is read, {fix}.")
    for path in normal_folders(test):
        if path.name != NORMAL:
            raise UserError(f"{path}: would be a kind of defect; rename it to {NORMAL}.")
    check_some_train(train / NORMAL, part.name)
    for path in (train, test):
        refuse_loose_images(path, f"a defect folder; move it to a folder such as {NORMAL}")
    images = []
    with Problems() as problems:
        for kind in [train / NORMAL, *folders_in(test)]:
            with problems.noted():
                paths = images_in(kind)
                masks = {} if kind.name == NORMAL else files_by_image(paths, truth / kind.name, suffix="_mask")
                for path in paths:
                    own = (masks[path],) if masks else ()
                    images.append(SourceImage(folder, path, part.name, kind.parent.name, kind.name, own))
        for path in folders_in(truth):
            with problems.noted():
                if path.name != NORMAL and images_in(path) and not (test / path.name).is_dir():
                    fix = "add the images or remove the masks"
                    raise UserError(f"{path}: masks without a folder test/{path.name}; {fix}.")
    return images
