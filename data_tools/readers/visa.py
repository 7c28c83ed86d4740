"""VisA, as its owner publishes it or in the converted form that most code uses.

    official:   <root>/<class>/Data/Images/{Normal,Anomaly}/0000.JPG
                <root>/<class>/Data/Masks/Anomaly/000.png           values are defect ids 1..9
                <root>/split_csv/1cls.csv                           object,split,label,image,mask
    converted:  <root>/VisA_pytorch/1cls/<class>/{train,test,ground_truth}/{good,bad}/...   masks 0/255

The split and the label come from the CSV, never from a path. Both forms get the same sample ids: the folder names of
the converted one (`good`, `bad`) and the original file names.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.readers.mvtec import read_good_tree
from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.source import (
    MaskMeaning,
    SourceImage,
    SourceTree,
    check_dataset_name,
    check_source_folder,
    folders_in,
    source_tree,
)
from data_tools.readers.table import Row, file_below, read_table
from fmad_dist.errors import UserError

LAYOUT = "visa"
EXPECTED = "split_csv/1cls.csv with <class>/Data, or VisA_pytorch/1cls/<class>/{train,test,ground_truth}"
_SPLIT_FILE = Path("split_csv") / "1cls.csv"
_CONVERTED = ("VisA_pytorch/1cls", "visa_pytorch/1cls", "VisA_pytorch", "visa_pytorch", "1cls", ".")
_IDS = MaskMeaning("class_id")

_COUNTS = """
    candle 900 100 100, capsules 542 60 100, cashew 450 50 100, chewinggum 453 50 100, fryum 450 50 100,
    macaroni1 900 100 100, macaroni2 900 100 100, pcb1 904 100 100, pcb2 901 100 100, pcb3 905 101 100,
    pcb4 904 101 100, pipe_fryum 450 50 100
"""


def _official_counts() -> dict[str, OfficialCounts]:
    lines = (entry.split() for entry in _COUNTS.split(","))
    return {name: OfficialCounts(int(train), 0, int(good), int(bad)) for name, train, good, bad in lines}


VISA = Benchmark(
    name="VisA",
    licence="CC BY 4.0",
    citation="Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer: SPot-the-Difference Self-Supervised Pre-training for "
    "Anomaly Detection and Segmentation, ECCV 2022",
    classes=_official_counts(),
    total=OfficialCounts(8659, 0, 962, 1200),
)


def read_visa(root: Path, dataset: str) -> SourceTree:
    """Either form; the official one has precedence where both lie in one folder.

    Raises:
        UserError: the folder is of neither form, a row of the CSV is wrong or names a missing file, or as
            `read_good_tree` for the converted form.
    """
    check_dataset_name(dataset)
    check_source_folder(root)
    if (root / _SPLIT_FILE).is_file():
        images = _read_official(root, dataset)
        return source_tree(dataset, LAYOUT, root, images, VISA, mask_semantics="class_id")
    if any((folder / "Data" / "Images").is_dir() for folder in folders_in(root)):
        raise UserError(f"{root / _SPLIT_FILE}: missing, but it says which images train; restore it from the download.")
    for name in _CONVERTED:
        if any((folder / "train").is_dir() for folder in folders_in(root / name)):
            inner = root / name
            images = [replace(i, source=i.image.relative_to(root).as_posix()) for i in read_good_tree(inner, dataset)]
            return source_tree(dataset, LAYOUT, root, images, VISA)
    found = ", ".join(path.name for path in folders_in(root)[:6]) or "no folders"
    raise UserError(f"{root}: not of the visa layout; expected {EXPECTED}, found {found}.")


def _read_official(root: Path, dataset: str) -> list[SourceImage]:
    rows = read_table(root / _SPLIT_FILE, ("object", "split", "label", "image", "mask"))
    images = [_record(root, row, dataset) for row in rows]
    for image, row in _repeated(images, rows):
        raise UserError(f"{row.where}: lists {image.source} a second time; keep one row per image.")
    return images


def _record(root: Path, row: Row, dataset: str) -> SourceImage:
    split = row.choice("split", ("train", "test"))
    anomalous = row.choice("label", ("normal", "anomaly")) == "anomaly"
    if anomalous and split == "train":
        raise UserError(f"{row.where}: an anomalous training image; only the split 1cls is read, restore 1cls.csv.")
    image = file_below(root, row["image"], row.where)
    if anomalous != bool(row["mask"]):
        fix = "add its mask" if anomalous else "remove the mask"
        raise UserError(f"{row.where}: a row with label {row['label']} and mask {row['mask']!r}; {fix}.")
    name, defect = row["object"], "bad" if anomalous else "good"
    if image.relative_to(root).parts[0] != name:
        raise UserError(f"{row.where}: object is {name!r} but the image is {row['image']}; correct one of them.")
    return SourceImage(
        sample_id=f"{dataset}/{name}/{split}/{defect}/{image.stem}",
        class_name=name,
        split=split,
        label=int(anomalous),
        defect_type=defect,
        source=image.relative_to(root).as_posix(),
        image=image,
        masks=(file_below(root, row["mask"], row.where),) if anomalous else (),
        mask_meaning=_IDS,
    )


def _repeated(images: list[SourceImage], rows: list[Row]) -> Iterator[tuple[SourceImage, Row]]:
    seen: set[str] = set()
    for image, row in zip(images, rows, strict=True):
        if image.source in seen:
            yield image, row
        seen.add(image.source)
