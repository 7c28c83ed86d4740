"""Masks: which pixels are defect, and how a mask gets smaller without losing one.

Used when shards are made and when stored originals are resized while reading, so both give the same mask.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from PIL import Image

from fmad_dist.images.codec import open_image

MASK_RESAMPLE = "raw != 0, nearest; max-pooling where nearest would be empty"
_HALF = 128
_ALPHA_MODES = {"LA", "PA", "RGBA", "La", "RGBa"}


def cell_centres(num_source: int, size: int) -> np.ndarray:
    """Source index under the centre of each of `size` cells, int64 [size]: what nearest resizing takes."""
    return ((2 * np.arange(size) + 1) * num_source) // (2 * size)


def raw_mask(data: bytes, where: object) -> np.ndarray:
    """The undecoded values (H, W) or (H, W, C) of a mask: palette indices, not colours; 0 where alpha is 0.

    A format with losses (JPEG, lossy WebP) writes greys around every edge, so its values are cut at half the range: 0
    or 255.

    Raises:
        UserError: the bytes are no image.
    """
    image = open_image(data, where)
    raw = np.asarray(image)
    if image.mode in _ALPHA_MODES:
        raw, alpha = raw[..., :-1], raw[..., -1]
    elif "transparency" in image.info and image.mode in ("L", "P", "RGB"):
        alpha = np.asarray(image.convert("RGBA"))[..., -1]
    else:
        alpha = None
    if is_lossy(data):
        raw = np.where(raw >= _HALF, np.uint8(255), np.uint8(0))
    if alpha is not None:
        raw = np.where((alpha > 0)[(..., *[None] * (raw.ndim - 2))], raw, 0)
    return raw


def is_lossy(data: bytes) -> bool:
    """Whether an image file is of a format that changes pixels when it is written."""
    jpeg, webp = data[:2] == b"\xff\xd8", data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return jpeg or (webp and b"VP8L" not in data)


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels of an image can be transparent."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def marked_pixels(raw: np.ndarray) -> np.ndarray:
    """Bool (H, W): any value but 0, in any channel, is defect."""
    marked = raw != 0
    return marked if marked.ndim == 2 else marked.any(axis=-1)


class MaskDoubt(StrEnum):
    """Why a mask may not be what its owner meant; no reason to refuse it."""

    LOSSY = "lossy"
    SHADES = "shades"
    COVERAGE = "coverage"


def doubts_about(data: bytes, raw: np.ndarray, ids_expected: bool = False) -> list[MaskDoubt]:
    """What is doubtful about the file of a mask, whose `raw_mask` is given; `ids_expected`: its values are ids."""
    marked = marked_pixels(raw)
    values = raw[marked]  # (N,) or (N, C)
    found = [MaskDoubt.LOSSY] if is_lossy(data) else []
    if not ids_expected and (values != values[:1]).any():
        found.append(MaskDoubt.SHADES)
    if marked.mean() > 0.5:
        found.append(MaskDoubt.COVERAGE)
    return found


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


def mask_on_map(raw_masks: Sequence[np.ndarray], map_size: int) -> np.ndarray:
    """The binary mask [map_size, map_size] of an image: the union of its undecoded masks [H, W], any integer dtype.

    Any non-zero value is a defect (some benchmarks store class ids, not 255). No masks give an all-normal
    mask; several masks of an image may differ in size.
    """
    mask = np.zeros((map_size, map_size), dtype=bool)
    for raw in raw_masks:
        binary = Image.fromarray((np.asarray(raw) != 0).astype(np.uint8))
        if binary.size != (map_size, map_size):
            binary = binary.resize((map_size, map_size), Image.Resampling.NEAREST)
        mask |= np.asarray(binary) != 0
    return mask
