"""MVTec 3D-AD: colour images with organised point clouds, and a validation split.

    <root>/<class>/{train,validation}/good/{rgb/000.png, xyz/000.tiff}
    <root>/<class>/test/{good,<defect>}/{rgb/000.png, xyz/000.tiff, gt/000.png}
    <root>/<class>/calibration/                                                     (not read)

Files of one scan have the same stem. A `gt` of normal images is empty by definition of the layout and is not read.
"""

from pathlib import Path

from data_tools.readers.mvtec import masks_by_image
from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.source import (
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_parts,
    check_source_folder,
    class_folders,
    folders_in,
    images_in,
    source_tree,
)
from fmad_dist.errors import UserError

LAYOUT = "mvtec3d"
EXPECTED = "<class>/{train,validation,test}/<defect>/{rgb,xyz,gt}"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_CLASSES = "bagel cable_gland carrot cookie dowel foam peach potato rope tire"

MVTEC_3D_AD = Benchmark(
    name="MVTec 3D-AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, X. Jin, D. Sattlegger, C. Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly "
    "Detection and Localization, VISAPP 2022",
    classes={name: OfficialCounts() for name in _CLASSES.split()},
)


def read_mvtec3d(root: Path, dataset: str) -> SourceTree:
    """The images of all three splits with their point clouds and masks.

    Raises:
        UserError: the folder is missing or of another layout, a class has no training images, or the files of a scan
            do not fit together.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    folders = class_folders(root, LAYOUT, EXPECTED)
    images = [image for folder in folders for image in _read_class(root, folder, dataset)]
    return source_tree(dataset, LAYOUT, root, images, MVTEC_3D_AD)


def _read_class(root: Path, folder: Path, dataset: str) -> list[SourceImage]:
    check_parts(folder, (*_SPLITS, "calibration"), LAYOUT)
    for part in ("train", "validation"):
        check_parts(folder / part, ("good",), LAYOUT)
    if not images_in(folder / "train" / "good" / "rgb"):
        raise UserError(f"{folder / 'train' / 'good' / 'rgb'}: no training images for class {folder.name}; add some.")
    images = []
    for part, split in _SPLITS.items():
        for scans in folders_in(folder / part):
            images += _read_scans(root, scans, dataset, split)
    return images


def _read_scans(root: Path, scans: Path, dataset: str, split: str) -> list[SourceImage]:
    check_parts(scans, ("rgb", "xyz", "gt"), LAYOUT)
    rgb = images_in(scans / "rgb")
    clouds = _clouds(rgb, scans / "xyz")
    masks = {} if scans.name == "good" else masks_by_image(rgb, scans / "gt", suffix="")
    return [
        SourceImage(
            sample_id=f"{dataset}/{scans.parts[-3]}/{split}/{scans.name}/{path.stem}",
            class_name=scans.parts[-3],
            split=split,
            label=int(scans.name != "good"),
            defect_type=scans.name,
            source=path.relative_to(root).as_posix(),
            image=path,
            masks=(masks[path],) if path in masks else (),
            xyz=clouds[path.stem],
        )
        for path in rgb
    ]


def _clouds(rgb: list[Path], folder: Path) -> dict[str, Path]:
    """The point cloud of every stem.

    Raises:
        UserError: an image has no point cloud, or a point cloud no image.
    """
    clouds = {path.stem: path for path in images_in(folder)}
    stems = {path.stem for path in rgb}
    for path in rgb:
        if path.stem not in clouds:
            raise UserError(f"{path}: its point cloud is missing; expected {folder / path.stem}.tiff, add it.")
    for stem, path in clouds.items():
        if stem not in stems:
            raise UserError(f"{path}: no image in {folder.parent / 'rgb'} belongs to this point cloud; remove it.")
    return clouds
