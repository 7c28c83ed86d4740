"""Organised point clouds: TIFF files of float32 (H, W, 3) beside an image of the same height and width.

Coordinates are never averaged: points are taken from the source pixel under the centre of each stored cell, the same
that masks use, and keep their float32 bits. (0, 0, 0) marks a missing point and stays exactly that.
"""

import io
from pathlib import Path

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.images import decoding
from fmad_dist.masks import cell_centres

XYZ_RESAMPLE = "float32, nearest"


def xyz_size(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height) from the headers of a TIFF file.

    Raises:
        UserError: it is no TIFF, or not of three float32 values per pixel.
    """
    import tifffile

    with decoding(path), tifffile.TiffFile(io.BytesIO(data)) as file:
        shape, kind = file.pages.first.shape, file.pages.first.dtype
    if len(shape) != 3 or shape[2] != 3 or kind != np.float32:
        raise UserError(
            f"{path}: {kind} {shape}, not float32 (height, width, 3); export x, y, z as the benchmark does."
        )
    return shape[1], shape[0]


def resized_xyz(data: bytes, path: Path, size: int | None) -> bytes:
    """An npy file of float32 (size, size, 3), or of its own height and width if `size` is None.

    Raises:
        UserError: the file cannot be decoded.
    """
    import tifffile

    with decoding(path):
        points = tifffile.imread(io.BytesIO(data))  # (H, W, 3)
    if size is not None:
        height, width = points.shape[:2]
        points = points[np.ix_(cell_centres(height, size), cell_centres(width, size))]
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(points, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()
