"""Masks: which pixels are defect, and how a mask gets smaller without losing one.

Used when shards are made and when stored originals are resized while reading, so both give the same mask.
"""

import numpy as np

from fmad_dist.images import open_image

MASK_RESAMPLE = "raw != 0, nearest; max-pooling where nearest would be empty"
_ALPHA_MODES = {"LA", "PA", "RGBA", "La", "RGBa"}


def cell_centres(num_source: int, size: int) -> np.ndarray:
    """Source index under the centre of each of `size` cells, int64 [size]: what nearest resizing takes."""
    return ((2 * np.arange(size) + 1) * num_source) // (2 * size)


def raw_mask(data: bytes, where: object) -> np.ndarray:
    """The undecoded values (H, W) or (H, W, C): palette indices, not colours, and no alpha."""
    image = open_image(data, where)
    raw = np.asarray(image)
    return raw[..., :-1] if image.mode in _ALPHA_MODES else raw


def marked_pixels(raw: np.ndarray) -> np.ndarray:
    marked = raw != 0
    return marked if marked.ndim == 2 else marked.any(axis=-1)


def resize_mask(mask: np.ndarray, size: int) -> tuple[np.ndarray, bool]:
    """Bool (size, size) from bool (H, W), and whether max-pooling was needed to keep the defect."""
    if mask.shape == (size, size):
        return mask, False
    height, width = mask.shape
    nearest = mask[np.ix_(cell_centres(height, size), cell_centres(width, size))]
    if nearest.any() or not mask.any():
        return nearest, False
    return _pool(_pool(mask, size).T, size).T, True


def _pool(mask: np.ndarray, size: int) -> np.ndarray:
    """Shrink axis 0 to `size` cells: a cell is set if any of its source rows is. Enlarges to the nearest row."""
    num_rows = mask.shape[0]
    if num_rows <= size:
        return mask[cell_centres(num_rows, size)]
    return np.logical_or.reduceat(mask, (np.arange(size) * num_rows) // size, axis=0)
