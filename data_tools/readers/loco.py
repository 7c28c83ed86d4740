"""MVTec LOCO AD: a validation split, and one mask per defect.

    <root>/<class>/{train,validation}/good/000.png
    <root>/<class>/test/{good,logical_anomalies,structural_anomalies}/000.png
    <root>/<class>/ground_truth/{logical_anomalies,structural_anomalies}/000/{000,001,...}.png
    <root>/<class>/defects_config.json

The masks of image 000 lie in a folder 000, one per defect; they may overlap. Each holds one value besides 0: the id of
the defect's type, which defects_config.json lists with the area that must be found for a full score.
"""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from data_tools.readers.fields import first_problem
from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.source import (
    MaskMeaning,
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_parts,
    check_source_folder,
    class_folders,
    folders_in,
    images_in,
    loose_images_in,
    source_tree,
)
from fmad_dist.errors import UserError, first_line
from fmad_dist.stream.manifest import DefectSaturation

LAYOUT = "loco"
EXPECTED = "<class>/{train,validation}/good, <class>/test/<kind> and <class>/ground_truth/<kind>/<image>"
DEFECTS = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def _tested(good: int, logical: int, structural: int) -> OfficialCounts:
    defects = {"logical_anomalies": logical, "structural_anomalies": structural}
    return OfficialCounts(test_normal=good, test_anomalous=logical + structural, defects=defects)


LOCO = Benchmark(
    name="MVTec LOCO AD",
    licence="CC BY-NC-SA 4.0",
    citation="P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger: Beyond Dents and Scratches: Logical "
    "Constraints in Unsupervised Anomaly Detection and Localization, IJCV 130, 2022",
    classes={
        "breakfast_box": _tested(102, 83, 90),
        "juice_bottle": _tested(94, 142, 94),
        "pushpins": _tested(138, 91, 81),
        "screw_bag": _tested(122, 137, 82),
        "splicing_connectors": _tested(119, 108, 85),
    },
    total=OfficialCounts(1772, 304, 575, 993),
)


def read_loco(root: Path, dataset: str) -> SourceTree:
    """The images of all three splits, with all masks of each.

    Raises:
        UserError: the folder is missing or of another layout, a class has no training images or no usable
            defects_config.json, or an image and its masks do not fit.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    folders = class_folders(root, LAYOUT, EXPECTED)
    saturation = {folder.name: read_saturation(folder / CONFIG) for folder in folders}
    images = []
    for folder in folders:
        ids = frozenset(rule.pixel_value for rule in saturation[folder.name])
        images += _read_class(root, folder, dataset, MaskMeaning("channel", ids))
    return source_tree(dataset, LAYOUT, root, images, LOCO, mask_semantics="channel", saturation=saturation)


def read_saturation(path: Path) -> list[DefectSaturation]:
    """The defect types of one class.

    Raises:
        UserError: the file is missing, has other fields, or a value that the official evaluation refuses.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing, but it explains the values in the masks; restore it from the download.")
    try:
        rules = TypeAdapter(list[DefectSaturation]).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; restore the file from the download.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions.") from None
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


def _read_class(root: Path, folder: Path, dataset: str, meaning: MaskMeaning) -> list[SourceImage]:
    check_parts(folder, (*_SPLITS, "ground_truth"), LAYOUT)
    for part in ("train", "validation"):
        check_parts(folder / part, ("good",), LAYOUT)
    check_parts(folder / "test", ("good", *DEFECTS), LAYOUT)
    check_parts(folder / "ground_truth", ("good", *DEFECTS), LAYOUT)
    if not images_in(folder / "train" / "good"):
        raise UserError(f"{folder / 'train' / 'good'}: no training images for class {folder.name}; add some.")
    images = []
    for part, split in _SPLITS.items():
        for loose in loose_images_in(folder / part):
            raise UserError(f"{loose}: an image outside a folder such as good; move it into one.")
        for kind in folders_in(folder / part):
            masks = {} if kind.name == "good" else _masks(folder, kind)
            for path in images_in(kind):
                images.append(_record(root, path, dataset, split, masks.get(path, ()), meaning))
    return images


def _masks(folder: Path, kind: Path) -> dict[Path, tuple[Path, ...]]:
    """All masks of every image of one kind of anomaly, sorted by file name."""
    truth = folder / "ground_truth" / kind.name
    images = {path.stem: path for path in images_in(kind)}
    for orphan in folders_in(truth):
        if orphan.name not in images:
            raise UserError(f"{orphan}: no image in {kind} belongs to these masks; rename or remove the folder.")
    masks = {path: tuple(images_in(truth / stem)) for stem, path in images.items()}
    for path, own in masks.items():
        if not own:
            raise UserError(f"{path}: its masks are missing; expected {truth / path.stem / '000.png'}, add them.")
    return masks


def _record(
    root: Path, path: Path, dataset: str, split: str, masks: tuple[Path, ...], meaning: MaskMeaning
) -> SourceImage:
    class_name, _, kind = path.relative_to(root).parts[:3]
    return SourceImage(
        sample_id=f"{dataset}/{class_name}/{split}/{kind}/{path.stem}",
        class_name=class_name,
        split=split,
        label=int(kind != "good"),
        defect_type=kind,
        source=path.relative_to(root).as_posix(),
        image=path,
        masks=masks,
        mask_meaning=meaning,
    )
