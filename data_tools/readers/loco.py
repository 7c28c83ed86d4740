"""MVTec LOCO AD: a validation split, and one mask per defect.

    <root>/<class>/{train,validation}/good/000.png
    <root>/<class>/test/{good,logical_anomalies,structural_anomalies}/000.png
    <root>/<class>/ground_truth/{logical_anomalies,structural_anomalies}/000/{000,001,...}.png
    <root>/<class>/defects_config.json

The masks of image 000 lie in a folder 000, one per defect; they may overlap. Each holds one value besides 0: the id of
the defect's type, which defects_config.json lists with the area that must be found for a full score.
"""

from pathlib import Path

from pydantic import TypeAdapter

from data_tools.readers.listings import read_json
from data_tools.readers.official import Benchmark, OfficialCounts, counted
from data_tools.readers.source_tree import (
    NORMAL,
    SPLIT_OF,
    MaskMeaning,
    SourceFolder,
    SourceImage,
    SourceTree,
    check_folder_names,
    check_some_train,
    check_three_splits,
    class_folders,
    folders_in,
    images_in,
    refuse_loose_images,
)
from fmad_dist.base.errors import Problems, UserError
from fmad_dist.stream.manifest import DefectSaturation

LAYOUT = "loco"
EXPECTED = "<class>/{train,validation}/good, <class>/test/<kind> and <class>/ground_truth/<kind>/<image>"
DEFECTS = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"


LOCO = Benchmark(
    name="MVTec LOCO AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger: Beyond Dents and Scratches: Logical "
    "Constraints in Unsupervised Anomaly Detection and Localization, IJCV 130, 2022",
    classes=counted("""
        breakfast_box | ? | ? | 102 | logical_anomalies 83, structural_anomalies 90
        juice_bottle | ? | ? | 94 | logical_anomalies 142, structural_anomalies 94
        pushpins | ? | ? | 138 | logical_anomalies 91, structural_anomalies 81
        screw_bag | ? | ? | 122 | logical_anomalies 137, structural_anomalies 82
        splicing_connectors | ? | ? | 119 | logical_anomalies 108, structural_anomalies 85
    """),
    total=OfficialCounts(1772, 304, 575, 993),
)


def read(folder: SourceFolder) -> SourceTree:
    """The images of all three splits, with all masks of each.

    Raises:
        UserError: the folder is of another layout, a class has no training images or no usable defects_config.json, or
            an image and its masks do not fit.
    """
    parts = class_folders(folder.root, LAYOUT, EXPECTED)
    saturation: dict[str, list[DefectSaturation]] = {}
    images: list[SourceImage] = []
    with Problems() as problems:
        for part in parts:
            with problems.noted():
                saturation[part.name] = read_saturation(part / CONFIG)
                ids = frozenset(rule.pixel_value for rule in saturation[part.name])
                images += _read_class(folder, part, MaskMeaning("channel", ids))
    return SourceTree(folder, LAYOUT, tuple(images), LOCO, "channel", saturation)


def read_saturation(path: Path) -> list[DefectSaturation]:
    """The defect types of one class.

    Raises:
        UserError: the file is missing, has other fields, or a value that the official evaluation refuses.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing, but it explains the values in the masks; restore it from the download.")
    rules = read_json(path, TypeAdapter(list[DefectSaturation]), strict=True)
    for rule in rules:
        threshold, relative = rule.saturation_threshold, rule.relative_saturation
        fits = isinstance(threshold, float) and 0 < threshold <= 1 if relative else isinstance(threshold, int)
        if not fits or threshold <= 0:
            wanted = "a fraction in (0, 1] such as 1.0" if relative else "a whole number of pixels"
            raise UserError(f"{path}: saturation_threshold of {rule.defect_name} is {threshold}; give {wanted}.")
        if not 1 <= rule.pixel_value <= 255:
            raise UserError(f"{path}: pixel_value of {rule.defect_name} is {rule.pixel_value}; give 1 to 255.")
    values = [rule.pixel_value for rule in rules]
    if len(set(values)) != len(values):
        raise UserError(f"{path}: two defect types have the same pixel_value; give each its own.")
    return rules


def _read_class(folder: SourceFolder, part: Path, meaning: MaskMeaning) -> list[SourceImage]:
    check_three_splits(part, ("ground_truth",), LAYOUT)
    for name in ("test", "ground_truth"):
        check_folder_names(part / name, (NORMAL, *DEFECTS), LAYOUT)
    check_some_train(part / "train" / NORMAL, part.name)
    images = []
    for name, split in SPLIT_OF.items():
        refuse_loose_images(part / name, f"a folder such as {NORMAL}; move it into one")
        for kind in folders_in(part / name):
            masks = {} if kind.name == NORMAL else _masks(part / "ground_truth" / kind.name, kind)
            for path in images_in(kind):
                images.append(SourceImage(folder, path, part.name, split, kind.name, masks.get(path, ()), meaning))
    return images


def _masks(truth: Path, kind: Path) -> dict[Path, tuple[Path, ...]]:
    """All masks of every image of one kind of anomaly, sorted by file name."""
    images = {path.stem: path for path in images_in(kind)}
    for orphan in folders_in(truth):
        if orphan.name not in images:
            raise UserError(f"{orphan}: no image in {kind} belongs to these masks; rename or remove the folder.")
    masks = {path: tuple(images_in(truth / stem)) for stem, path in images.items()}
    for path, own in masks.items():
        if not own:
            raise UserError(f"{path}: its masks are missing; expected {truth / path.stem / '000.png'}, add them.")
    return masks
