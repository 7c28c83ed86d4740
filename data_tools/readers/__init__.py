"""One reader per benchmark layout. A reader walks a source folder and returns its images, checked but not decoded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_tools.readers import folder, loco, mvtec, mvtec3d, realiad, visa
from data_tools.readers.notes import provenance_of
from data_tools.readers.source_tree import SourceFolder, SourceTree, check_unique
from fmad_dist.base.errors import UserError

readers: dict[str, Callable[[SourceFolder], SourceTree]] = {
    **{module.LAYOUT: module.read for module in (mvtec, visa, loco, mvtec3d, realiad, folder)},
    "mpdd": mvtec.read_mpdd,
}


def read_source(layout: str, root: Path, dataset: str) -> SourceTree:
    """Walk `root` with the reader of `layout`; licence and origin are those of notes.py.

    Raises:
        UserError: no reader has that name, the folder is missing or not of the layout, or two files would get the same
            sample id.
    """
    if layout not in readers:
        raise UserError(f"--layout {layout}: unknown; choose one of {', '.join(sorted(readers))}.")
    if not root.name:  # "." and "..": a single class is called like its folder
        root = root.resolve()
    tree = readers[layout](SourceFolder(root, dataset))
    check_unique(tree.images)
    parts = [root / name for name in sorted({image.class_name for image in tree.images})]
    found = provenance_of(root, [part for part in parts if part.is_dir()], tree.benchmark)
    images = tuple(sorted(tree.images, key=lambda image: image.sample_id))
    return replace(tree, images=images, licence=found.licence, note=found.source, disagreements=found.disagreements)
