"""MVTec 3D-AD: colour images with organised point clouds, and a validation split.

    <root>/<class>/{train,validation}/good/{rgb/000.png, xyz/000.tiff}
    <root>/<class>/test/{good,<defect>}/{rgb/000.png, xyz/000.tiff, gt/000.png}
    <root>/<class>/calibration/                                                     (not read)

Files of one scan have the same stem. A `gt` of normal images is empty by definition of the layout and is not read.
"""

from pathlib import Path

from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.source_tree import (
    NORMAL,
    SPLIT_OF,
    SourceFolder,
    SourceImage,
    SourceTree,
    check_folder_names,
    check_some_train,
    check_three_splits,
    class_folders,
    files_by_image,
    folders_in,
    images_in,
)
from fmad_dist.base.errors import Problems

LAYOUT = "mvtec3d"
EXPECTED = "<class>/{train,validation,test}/<defect>/{rgb,xyz,gt}"
_CLASSES = "bagel cable_gland carrot cookie dowel foam peach potato rope tire"

MVTEC_3D_AD = Benchmark(
    name="MVTec 3D-AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, X. Jin, D. Sattlegger, C. Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly "
    "Detection and Localization, VISAPP 2022",
    classes={name: OfficialCounts() for name in _CLASSES.split()},
)


def read(folder: SourceFolder) -> SourceTree:
    """The images of all three splits with their point clouds and masks.

    Raises:
        UserError: the folder is of another layout, a class has no training images, or the files of a scan do not fit
            together.
    """
    parts = class_folders(folder.root, LAYOUT, EXPECTED)
    images: list[SourceImage] = []
    with Problems() as problems:
        for part in parts:
            with problems.noted():
                images += _read_class(folder, part)
    return SourceTree(folder, LAYOUT, tuple(images), MVTEC_3D_AD)


def _read_class(folder: SourceFolder, part: Path) -> list[SourceImage]:
    check_three_splits(part, ("calibration",), LAYOUT)
    check_some_train(part / "train" / NORMAL / "rgb", part.name)
    images = []
    for name, split in SPLIT_OF.items():
        for scans in folders_in(part / name):
            images += _read_scans(folder, scans, part.name, split)
    return images


def _read_scans(folder: SourceFolder, scans: Path, class_name: str, split: str) -> list[SourceImage]:
    check_folder_names(scans, ("rgb", "xyz", "gt"), LAYOUT)
    rgb = images_in(scans / "rgb")
    clouds = files_by_image(rgb, scans / "xyz", what="point cloud.tiff")
    masks = {} if scans.name == NORMAL else files_by_image(rgb, scans / "gt")
    images = []
    for path in rgb:
        own = (masks[path],) if masks else ()
        images.append(SourceImage(folder, path, class_name, split, scans.name, own, xyz=clouds[path]))
    return images
