"""What every reader returns: the images of a benchmark as they lie on disk, checked but not decoded."""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_tools.readers.official import Benchmark
from fmad_dist.base.errors import Problems, UserError, check_utf8
from fmad_dist.images.codec import IMAGE_SUFFIXES
from fmad_dist.stream.manifest import ClassCounts, DefectSaturation, MaskSemantics, count_classes

NORMAL = "good"  # defect type of images without a defect
NORMAL_NAMES = (NORMAL, "ok", "normal")  # what people call the folder of such images
SPLIT_OF = {"train": "train", "validation": "val", "test": "test"}  # by the folder of layouts with three splits
_NOTE_SUFFIXES = {"", ".txt", ".md", ".json", ".csv", ".yaml", ".yml", ".xml", ".pdf", ".html", ".ini", ".db"}


@dataclass(frozen=True, slots=True)
class MaskMeaning:
    """What the values in a mask say: that there is a defect, or which."""

    semantics: MaskSemantics = "binary"
    known_ids: frozenset[int] = frozenset()  # ids that may occur; empty if the layout does not list them


BINARY = MaskMeaning()


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """The folder `root` of images that becomes the dataset `dataset`.

    Raises:
        UserError: there is no such folder, or the name could not be one part of a sample id.
    """

    root: Path
    dataset: str

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        if not self.root.exists():
            raise UserError(f"{self.root}: the source folder does not exist; check the path given as --source.")
        if not self.root.is_dir():
            raise UserError(f"{self.root}: a file, not a folder; give the unpacked dataset's folder as --source.")


@dataclass(frozen=True)
class SourceImage:
    """One image of a source folder with its masks (none for a normal image)."""

    folder: SourceFolder
    image: Path
    class_name: str
    split: str  # train | val | test
    defect_type: str = NORMAL
    masks: tuple[Path, ...] = ()
    mask_meaning: MaskMeaning = BINARY
    xyz: Path | None = None  # organised point cloud of the same height and width
    group: str = ""  # same for all images of one physical part
    view: str = ""
    name: str = ""  # last part of the sample id; "": the file's name without its suffix

    @property
    def label(self) -> int:
        """0 normal, 1 anomalous."""
        return int(self.defect_type != NORMAL)

    @cached_property
    def source(self) -> str:
        """Posix path of the image below the source folder."""
        return self.image.relative_to(self.folder.root).as_posix()

    @cached_property
    def sample_id(self) -> str:
        """`<dataset>/<class>/<split>/<defect type>/<name>`."""
        name = self.name or self.image.stem
        return f"{self.folder.dataset}/{self.class_name}/{self.split}/{self.defect_type}/{name}"

    @property
    def key(self) -> str:
        """WebDataset key: readers of tars cut a name at its first dot, so the key must not hold one."""
        return self.sample_id.replace(".", "_")


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A whole source folder: its images, sorted by sample id once it is checked, and where they come from."""

    folder: SourceFolder
    layout: str
    images: tuple[SourceImage, ...]
    benchmark: Benchmark | None = None  # whose official counts the tree should have
    mask_semantics: MaskSemantics = "binary"
    saturation: dict[str, list[DefectSaturation]] = field(default_factory=dict)  # per class
    licence: str = ""
    note: str = ""  # where the images come from
    disagreements: tuple[str, ...] = ()  # sentences about notes that name another licence

    @property
    def citation(self) -> str:
        return self.benchmark.citation if self.benchmark else ""

    @property
    def class_counts(self) -> dict[str, ClassCounts]:
        return count_classes((image.class_name, image.split, image.label, image.defect_type) for image in self.images)


def check_dataset_name(name: str) -> None:
    """Refuse a name that could not be one part of a sample id (UserError)."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--dataset {name!r}: use letters, digits, '_' and '-' only, for example mvtec_ad.")


def class_folders(root: Path, layout: str, expected: str) -> list[Path]:
    """The class folders of a tree of `<class>/train/...`; `root` itself if that is a single class.

    Raises:
        UserError: `root` holds nothing of the layout.
    """
    folders = folders_in(root)
    if (root / "train").is_dir():
        return [root]
    if not any((folder / "train").is_dir() for folder in folders):
        raise another_layout(root, layout, expected)
    return folders


def another_layout(root: Path, layout: str, expected: str) -> UserError:
    """The error for a folder that holds nothing of a layout; it names what was found, and the layout that it is of."""
    found = ", ".join(path.name for path in folders_in(root)[:6]) or "no folders"
    other = _likely_layout(root)
    hint = f"; it looks like --layout {other}" if other not in (None, layout) else ""
    return UserError(f"{root}: not of the {layout} layout; expected {expected}, found {found}{hint}.")


def _likely_layout(root: Path) -> str | None:
    """The layout whose folders are there, if any is."""
    folders = [root, *folders_in(root)]
    if (root / "images.csv").is_file():
        return "folder"
    if any(path.name == "split_csv" for path in folders):
        return "visa"
    if any(path.name.startswith("realiad_jsons") for path in folders):
        return "realiad"
    if any((path / "train").is_dir() for path in folders):
        return "mvtec"
    return "folder" if any(normal_folders(path) for path in folders) else None


def normal_folders(folder: Path) -> list[Path]:
    """The folders directly in `folder` whose name says that their images are normal."""
    return [path for path in folders_in(folder) if path.name.lower() in NORMAL_NAMES]


def check_folder_names(folder: Path, known: tuple[str, ...], layout: str) -> None:
    """Refuse a folder that holds a folder which is not one of `known` (UserError)."""
    for path in folders_in(folder):
        if path.name not in known:
            raise UserError(f"{path}: not part of the {layout} layout; expected {', '.join(known)}, move it out.")


def check_three_splits(part: Path, others: tuple[str, ...], layout: str) -> None:
    """Refuse a class folder that holds others than these and the three splits, or defects to learn from (UserError)."""
    check_folder_names(part, (*SPLIT_OF, *others), layout)
    for name in ("train", "validation"):
        check_folder_names(part / name, (NORMAL,), layout)


def check_some_train(folder: Path, class_name: str) -> None:
    """Refuse a folder of training images that holds none (UserError)."""
    if not images_in(folder):
        raise UserError(f"{folder}: no training images for class {class_name}; add some or remove the class.")


def folders_in(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in visible(folder) if path.is_dir() and not path.name.startswith("__"))


def visible(folder: Path) -> list[Path]:
    """What is directly in `folder`, without hidden files and folders.

    Raises:
        UserError: a name is no UTF-8, and could be written into no index.
    """
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    with Problems() as problems:
        for path in found:
            with problems.noted():
                check_utf8(str(path))
    return found


def images_in(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted; notes and hidden files are left out.

    Raises:
        UserError: the folder holds something that is neither an image we read nor a note.
    """
    if not folder.is_dir():
        return []
    images = []
    with Problems() as problems:
        for path in sorted(visible(folder)):
            with problems.noted():
                if path.is_dir():
                    raise UserError(f"{path}: a folder where only image files are expected; move it out of the tree.")
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(path)
                elif path.suffix.lower() not in _NOTE_SUFFIXES:
                    known = " ".join(sorted(IMAGE_SUFFIXES))
                    raise UserError(f"{path}: not one of the image types {known}; convert it to PNG or move it out.")
    return images


def files_by_image(images: list[Path], folder: Path, *, suffix: str = "", what: str = "mask.png") -> dict[Path, Path]:
    """The file in `folder` of every image of one folder: `<stem><suffix>` or `<stem>`.

    `what` says what the files are and how their names usually end.

    Raises:
        UserError: an image has no file or two, or a file has no image.
    """
    kind, _, ending = what.partition(".")
    by_stem: dict[str, Path] = {}
    paired: dict[Path, Path] = {}
    used: set[Path] = set()
    with Problems() as problems:
        for path in images_in(folder):
            other = by_stem.setdefault(composed(path.stem), path)
            with problems.noted():
                if other is not path:
                    raise UserError(f"{path}: {other.name} is a {kind} of the same name; keep one of them.")
        for image in images:
            stem = composed(image.stem)
            found = [by_stem[name] for name in sorted({f"{stem}{suffix}", stem}) if name in by_stem]
            used.update(found)
            with problems.noted():
                if not found:
                    expected = folder / f"{image.stem}{suffix}.{ending}"
                    raise UserError(f"{image}: its {kind} is missing; expected {expected}, add it or remove the image.")
                if len(found) > 1:
                    raise UserError(f"{image}: has two {kind}s, {found[0].name} and {found[1].name}; keep one of them.")
                paired[image] = found[0]
        where = images[0].parent if images else f"the empty folder {folder.name}"
        for path in sorted(set(by_stem.values()) - used):
            with problems.noted():
                raise UserError(f"{path}: no image in {where} belongs to this {kind}; rename it or remove it.")
    return paired


def composed(name: str) -> str:
    """The name with accents as one character each: some systems store them as two, which looks the same."""
    return unicodedata.normalize("NFC", name)


def refuse_loose_images(folder: Path, fix: str) -> None:
    """Refuse image files directly in a folder that should only hold folders (UserError); `fix` ends the sentence."""
    loose = [path for path in folder.glob("*") if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    if loose:
        raise UserError(f"{min(loose)}: an image outside {fix}.")


def check_unique(images: tuple[SourceImage, ...]) -> None:
    """Refuse two files that would become the same sample, or the same key inside a shard (UserError)."""
    seen: dict[str, SourceImage] = {}
    with Problems() as problems:
        for image in images:
            other = seen.setdefault(image.key, image)
            with problems.noted():
                if other is not image:
                    name = f"{other.source} ({other.sample_id})"
                    raise UserError(f"{image.image}: has the same sample id as {name}; rename or remove one.")
