"""VisA, as its owner publishes it or in the converted form that most code uses.

    official:   <root>/<class>/Data/Images/{Normal,Anomaly}/0000.JPG
                <root>/<class>/Data/Masks/Anomaly/000.png           values are defect ids 1..9
                <root>/split_csv/1cls.csv                           object,split,label,image,mask
                (or the classes in <root>/VisA; or split_csv beside the root; any subset of the classes)
    converted:  <root>/VisA_pytorch/1cls/<class>/{train,test,ground_truth}/{good,bad}/...   masks 0/255

The split and the label come from the CSV, never from a path. Both forms get the same sample ids: the folder names of
the converted one (`good`, `bad`) and the original file names.
"""

from pathlib import Path

from data_tools.readers.listings import Row, file_below, read_table
from data_tools.readers.mvtec import read_good_tree
from data_tools.readers.official import Benchmark, OfficialCounts, counted
from data_tools.readers.source_tree import (
    NORMAL,
    MaskMeaning,
    SourceFolder,
    SourceImage,
    SourceTree,
    another_layout,
    folders_in,
)
from fmad_dist.base.errors import Problems, UserError

LAYOUT = "visa"
EXPECTED = "split_csv/1cls.csv with <class>/Data, or VisA_pytorch/1cls/<class>/{train,test,ground_truth}"
_SPLIT_FILE = Path("split_csv") / "1cls.csv"
_CONVERTED = ("VisA_pytorch/1cls", "visa_pytorch/1cls", "VisA_pytorch", "visa_pytorch", "1cls", ".")
_IDS = MaskMeaning("class_id")

VISA = Benchmark(
    name="VisA",
    licence="CC BY 4.0",
    citation="Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer: SPot-the-Difference Self-Supervised Pre-training for "
    "Anomaly Detection and Segmentation, ECCV 2022",
    classes=counted("""
        candle | 900 | 0 | 100 | 100; capsules | 542 | 0 | 60 | 100; cashew | 450 | 0 | 50 | 100
        chewinggum | 453 | 0 | 50 | 100; fryum | 450 | 0 | 50 | 100; macaroni1 | 900 | 0 | 100 | 100
        macaroni2 | 900 | 0 | 100 | 100; pcb1 | 904 | 0 | 100 | 100; pcb2 | 901 | 0 | 100 | 100
        pcb3 | 905 | 0 | 101 | 100; pcb4 | 904 | 0 | 101 | 100; pipe_fryum | 450 | 0 | 50 | 100
    """),
    total=OfficialCounts(8659, 0, 962, 1200),
)


def read(folder: SourceFolder) -> SourceTree:
    """Either form; the official one has precedence where both lie in one folder.

    Raises:
        UserError: the folder is of neither form, a row of the CSV is wrong or names a missing file, or as
            `read_good_tree` for the converted form.
    """
    root = folder.root
    classes = _official_classes(root)
    if classes is not None:
        tables = [above / _SPLIT_FILE for above in (root, classes, root.parent) if (above / _SPLIT_FILE).is_file()]
        if not tables:
            fix = "restore it from the download"
            raise UserError(f"{root / _SPLIT_FILE}: missing, but it says which images train; {fix}.")
        return SourceTree(folder, LAYOUT, _read_official(folder, classes, tables[0]), VISA, "class_id")
    for name in _CONVERTED:
        if any((part / "train").is_dir() for part in folders_in(root / name)):
            return SourceTree(folder, LAYOUT, read_good_tree(folder, root / name), VISA)
    raise another_layout(root, LAYOUT, EXPECTED)


def _official_classes(root: Path) -> Path | None:
    """The folder of the classes' folders: `root`, or a folder such as VisA that was unpacked beside split_csv."""
    for candidate in [root, *folders_in(root)]:
        if any((part / "Data" / "Images").is_dir() for part in folders_in(candidate)):
            return candidate
    return None


def _read_official(folder: SourceFolder, classes: Path, table: Path) -> tuple[SourceImage, ...]:
    """The images that the table lists of the classes that are there; the table names all of the benchmark."""
    present = {part.name for part in folders_in(classes)}
    images: dict[str, SourceImage] = {}
    with Problems() as problems:
        for row in read_table(table, ("object", "split", "label", "image", "mask")):
            if row["object"] in VISA.classes and row["object"] not in present:
                continue
            with problems.noted():
                image = _image(folder, classes, row)
                if images.setdefault(image.source, image) is not image:
                    raise UserError(f"{row.where}: lists {image.source} a second time; keep one row per image.")
        if not images:
            raise UserError(f"{table}: lists none of the classes in {classes}; restore it from the download.")
    return tuple(images.values())


def _image(folder: SourceFolder, classes: Path, row: Row) -> SourceImage:
    split = row.choice("split", ("train", "test"))
    anomalous = row.choice("label", ("normal", "anomaly")) == "anomaly"
    if anomalous and split == "train":
        raise UserError(f"{row.where}: an anomalous training image; only the split 1cls is read, restore 1cls.csv.")
    path = file_below(classes, row["image"], row.where)
    if anomalous != bool(row["mask"]):
        fix = "add its mask" if anomalous else "remove the mask"
        raise UserError(f"{row.where}: a row with label {row['label']} and mask {row['mask']!r}; {fix}.")
    name, defect = row["object"], "bad" if anomalous else NORMAL
    if path.relative_to(classes).parts[0] != name:
        raise UserError(f"{row.where}: object is {name!r} but the image is {row['image']}; correct one of them.")
    masks = (file_below(classes, row["mask"], row.where),) if anomalous else ()
    return SourceImage(folder, path, name, split, defect, masks, _IDS)
