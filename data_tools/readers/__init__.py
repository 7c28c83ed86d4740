"""One reader per benchmark layout. A reader walks a source folder and returns a checked `SourceTree`."""

from collections.abc import Callable
from pathlib import Path

from data_tools.readers.mvtec import LAYOUT as MVTEC
from data_tools.readers.mvtec import read_mvtec
from data_tools.readers.source import SourceTree
from fmad_dist.errors import UserError

Reader = Callable[[Path, str], SourceTree]

readers: dict[str, Reader] = {MVTEC: read_mvtec}


def read_source(layout: str, root: Path, dataset: str) -> SourceTree:
    """Walk `root` with the reader of `layout`.

    Raises:
        UserError: no reader has that name, or the folder is not of the layout.
    """
    if layout not in readers:
        raise UserError(f"--layout {layout}: unknown; choose one of {', '.join(sorted(readers))}.")
    return readers[layout](root, dataset)
