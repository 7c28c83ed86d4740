"""One reader per benchmark layout. A reader walks a source folder and returns a checked `SourceTree`."""

from collections.abc import Callable
from pathlib import Path

from data_tools.readers.folder import LAYOUT as FOLDER
from data_tools.readers.folder import read_folder
from data_tools.readers.loco import LAYOUT as LOCO
from data_tools.readers.loco import read_loco
from data_tools.readers.mpdd import LAYOUT as MPDD
from data_tools.readers.mpdd import read_mpdd
from data_tools.readers.mvtec import LAYOUT as MVTEC
from data_tools.readers.mvtec import read_mvtec
from data_tools.readers.mvtec3d import LAYOUT as MVTEC3D
from data_tools.readers.mvtec3d import read_mvtec3d
from data_tools.readers.realiad import LAYOUT as REALIAD
from data_tools.readers.realiad import read_realiad
from data_tools.readers.source import SourceTree
from data_tools.readers.visa import LAYOUT as VISA
from data_tools.readers.visa import read_visa
from fmad_dist.errors import UserError

Reader = Callable[[Path, str], SourceTree]

readers: dict[str, Reader] = {
    MVTEC: read_mvtec,
    VISA: read_visa,
    LOCO: read_loco,
    MVTEC3D: read_mvtec3d,
    MPDD: read_mpdd,
    REALIAD: read_realiad,
    FOLDER: read_folder,
}


def read_source(layout: str, root: Path, dataset: str) -> SourceTree:
    """Walk `root` with the reader of `layout`.

    Raises:
        UserError: no reader has that name, or the folder is not of the layout.
    """
    if layout not in readers:
        raise UserError(f"--layout {layout}: unknown; choose one of {', '.join(sorted(readers))}.")
    return readers[layout](root, dataset)
