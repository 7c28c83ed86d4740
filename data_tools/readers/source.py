"""What every reader returns: the images of a benchmark as they lie on disk, checked but not decoded."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.readers.official import Benchmark
from data_tools.readers.provenance import provenance_of
from fmad_dist.errors import UserError
from fmad_dist.images import IMAGE_SUFFIXES
from fmad_dist.stream.manifest import DefectSaturation, MaskSemantics

_NOTE_SUFFIXES = frozenset(
    {"", ".txt", ".md", ".json", ".csv", ".yaml", ".yml", ".xml", ".pdf", ".html", ".ini", ".db"}
)


@dataclass(frozen=True, slots=True)
class MaskMeaning:
    """What the values in a mask say: that there is a defect, or which."""

    semantics: MaskSemantics = "binary"
    known_ids: frozenset[int] = frozenset()  # ids that may occur; empty if the layout does not list them


BINARY = MaskMeaning()


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source tree with its masks (none for a normal image)."""

    sample_id: str  # <dataset>/<class>/<split>/<defect folder>/<stem>
    class_name: str
    split: str  # train | val | test
    label: int  # 0 normal, 1 anomalous
    defect_type: str  # "good" for normal images
    source: str  # posix path of the image below the source folder
    image: Path
    masks: tuple[Path, ...] = ()
    mask_meaning: MaskMeaning = BINARY
    xyz: Path | None = None  # organised point cloud of the same height and width
    group: str = ""  # same for all images of one physical part
    view: str = ""

    @property
    def key(self) -> str:
        """WebDataset key: readers of tars cut a name at its first dot, so the key must not hold one."""
        return self.sample_id.replace(".", "_")


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A whole source folder: its images sorted by sample id, and where they come from."""

    dataset: str
    layout: str
    root: Path
    images: tuple[SourceImage, ...]
    licence: str
    note: str
    citation: str = ""
    mask_semantics: MaskSemantics = "binary"
    saturation: dict[str, list[DefectSaturation]] = field(default_factory=dict)
    benchmark: Benchmark | None = None  # whose official counts the tree should have


def source_tree(
    dataset: str,
    layout: str,
    root: Path,
    images: list[SourceImage],
    benchmark: Benchmark | None,
    *,
    mask_semantics: MaskSemantics = "binary",
    saturation: dict[str, list[DefectSaturation]] | None = None,
) -> SourceTree:
    """The checked tree with its images sorted. Notes beside the images outrank what the benchmark's owner published.

    Raises:
        UserError: two files would get the same sample id.
    """
    check_unique(images)
    names = sorted({image.class_name for image in images})
    found = provenance_of(root, [root / name for name in names if (root / name).is_dir()], benchmark)
    ordered = tuple(sorted(images, key=lambda image: image.sample_id))
    citation = benchmark.citation if benchmark else ""
    return SourceTree(
        dataset,
        layout,
        root,
        ordered,
        found.licence,
        found.source,
        citation,
        mask_semantics,
        saturation or {},
        benchmark,
    )


def check_dataset_name(name: str) -> None:
    """Raises:
    UserError: the name could not be one part of a sample id.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--dataset {name!r}: use letters, digits, '_' and '-' only, for example mvtec_ad.")


def check_source_folder(root: Path) -> None:
    """Raises:
    UserError: there is no folder at `root`.
    """
    if not root.exists():
        raise UserError(f"{root}: the source folder does not exist; check the path given as --source.")
    if not root.is_dir():
        raise UserError(f"{root}: a file, not a folder; give the unpacked dataset's folder as --source.")


def class_folders(root: Path, layout: str, expected: str) -> list[Path]:
    """The class folders of a tree of `<class>/train/...`.

    Raises:
        UserError: `root` is a single class, or holds nothing of the layout.
    """
    folders = folders_in(root)
    names = [folder.name for folder in folders]
    if "train" in names:
        raise UserError(
            f"{root}: looks like a single class of the {layout} layout; give its parent folder as --source."
        )
    if not any((folder / "train").is_dir() for folder in folders):
        found = ", ".join(names[:6]) or "no folders"
        raise UserError(f"{root}: not of the {layout} layout; expected {expected}, found {found}.")
    return folders


def check_parts(folder: Path, known: tuple[str, ...], layout: str) -> None:
    """Raises:
    UserError: `folder` holds a folder that is not one of `known`.
    """
    for path in folders_in(folder):
        if path.name not in known:
            raise UserError(f"{path}: not part of the {layout} layout; expected {', '.join(known)}, move it out.")


def folders_in(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def images_in(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted; notes and hidden files are left out.

    Raises:
        UserError: the folder holds something that is neither an image we read nor a note.
    """
    if not folder.is_dir():
        return []
    images = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise UserError(f"{path}: a folder where only image files are expected; move it out of the tree.")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif path.suffix.lower() not in _NOTE_SUFFIXES:
            known = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{path}: not one of the image types {known}; convert it to PNG or move it out.")
    return images


def loose_images_in(folder: Path) -> list[Path]:
    """Image files lying directly in a folder that should only hold folders, sorted."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES)


def check_unique(images: list[SourceImage]) -> None:
    """Raises:
    UserError: two files would become the same sample (or the same key inside a shard).
    """
    seen: dict[str, SourceImage] = {}
    for image in images:
        other = seen.setdefault(image.key, image)
        if other is not image:
            raise UserError(
                f"{image.image}: has the same sample id as {other.source} ({other.sample_id}); rename or remove one."
            )
