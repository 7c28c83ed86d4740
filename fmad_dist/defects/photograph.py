"""Synthetic defects on a photograph of a normal product, with masks of what can be seen of them.

What is drawn depends on the pixels, the kind of defect and a key alone: no layout of processes or batches changes it.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from fmad_dist.defects.canvas import Grid, Rng
from fmad_dist.defects.pieces import cut_paste, deformation, scar, texture
from fmad_dist.defects.surface import Overlay, Painted, contamination, scratch, stain

VISIBLE = 8  # grey levels of 255 that a pixel must change by
SMALLEST_PART = 0.0004  # of the picture that must change visibly: 27 pixels of 256 x 256
SPECK_PART = 0.0001  # smaller spots of a defect, and smaller holes in it, do not count: 7 pixels of 256 x 256
LEAST_CHANGED = 0.6  # of the pixels of a mask
ATTEMPTS = 20
DIRT = ((0.08, 0.08, 0.08), (0.92, 0.92, 0.9), (0.5, 0.33, 0.2), (0.66, 0.12, 0.1), (0.2, 0.3, 0.62))


def _any_scratch(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """A bright one on a dark product, mostly, and a dark one on a bright product."""
    brightness = float(np.average(painted.colour.mean(axis=-1), weights=painted.body))
    light = 0.95 if rng.uniform() > brightness else 0.08
    return scratch(grid, painted, rng, severity, light=light, width=3.0)


def _any_stain(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """One of any colour."""
    red, green, blue = rng.uniform(0.25, 0.9, 3)
    return stain(grid, painted, rng, severity, tint=(red, green, blue))


KINDS: dict[str, Overlay] = {
    "contamination": partial(contamination, paints=DIRT),
    "cut_paste": cut_paste,
    "deformation": deformation,
    "scar": scar,
    "scratch": _any_scratch,
    "stain": _any_stain,
    "texture": texture,
}


@dataclass(frozen=True, slots=True)
class DefectivePhotograph:
    """A photograph with a synthetic defect."""

    pixels: np.ndarray  # uint8 (S, S, 3), outside the mask those of the photograph
    mask: np.ndarray  # bool (S, S)


def with_defect(pixels: np.ndarray, kind: str, key: str) -> DefectivePhotograph | None:
    """Draw a defect of one of the `KINDS` on a photograph uint8 (S, S, 3).

    None if no defect of `ATTEMPTS` can be seen, as on a picture of one colour.
    """
    grid, painted = Grid(len(pixels)), Painted(pixels / 255.0, product_of(pixels).astype(float))
    for attempt in range(ATTEMPTS):
        digest = hashlib.sha256(f"{key}/{kind}/{attempt}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        colour = KINDS[kind](grid, painted, rng, float(rng.uniform()))
        if (pixels == pixels[..., :1]).all():  # a grey camera sees no colours
            colour = np.broadcast_to(colour.mean(axis=-1, keepdims=True), colour.shape)
        found = visible_defect(pixels, np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8))
        if found is not None:
            return found
    return None


def visible_defect(pixels: np.ndarray, changed: np.ndarray) -> DefectivePhotograph | None:
    """Keep of a change what a person would mark; None if it is too small or too faint.

    The mask joins visible pixels that almost touch and has neither specks nor small holes. Changes outside it are
    undone.
    """
    visible = np.abs(changed.astype(np.int16) - pixels).max(axis=-1) >= VISIBLE
    if np.count_nonzero(visible) < max(2.0, SMALLEST_PART * visible.size):
        return None
    mask = np.zeros_like(visible)
    window = ndimage.find_objects(visible.astype(np.int8))[0]
    mask[window] = _joined(visible[window], max(2, int(SPECK_PART * visible.size)))
    num_visible = np.count_nonzero(visible & mask)
    if num_visible < max(2.0, SMALLEST_PART * visible.size) or num_visible < LEAST_CHANGED * np.count_nonzero(mask):
        return None
    return DefectivePhotograph(np.where(mask[..., None], changed, pixels), mask)


def product_of(pixels: np.ndarray) -> np.ndarray:
    """Bool (S, S): the product in a photograph uint8 (S, S, 3), or all of it where no background can be told.

    A background is what has the colour of a picture's border (Otsu's threshold on the distance to it), when the
    border has one colour and what is left is one piece that is neither small nor almost everything.
    """
    from skimage.filters import threshold_otsu

    values = ndimage.gaussian_filter(pixels.astype(np.float32), (1, 1, 0))
    ring = np.ones(pixels.shape[:2], bool)
    width = max(1, len(pixels) // 32)
    ring[width:-width, width:-width] = False
    distance = np.abs(values - np.median(values[ring], axis=0)).max(axis=-1)
    everything = np.ones_like(ring)
    if distance.max() - distance.min() < VISIBLE:
        return everything
    limit = float(threshold_otsu(distance))
    inside = ndimage.binary_opening(distance > limit, iterations=width // 2 + 1)
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())[1:]
    if not sizes.size or sizes.max() < 0.8 * sizes.sum() or np.percentile(distance[ring], 75) > limit / 2:
        return everything
    largest = ndimage.binary_fill_holes(parts == 1 + int(sizes.argmax()))
    return largest if 0.05 < largest.mean() < 0.95 else everything


def _joined(visible: np.ndarray, speck: int) -> np.ndarray:
    """A bool mask (h, w) that is closed, without specks and small holes."""
    closed = ndimage.binary_closing(np.pad(visible, 2), np.ones((3, 3), bool))
    return (~_without_specks(~_without_specks(closed, speck), speck))[2:-2, 2:-2]


def _without_specks(mask: np.ndarray, smallest: int) -> np.ndarray:
    """A bool mask without its 8-connected parts of fewer than `smallest` pixels."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    return mask & (np.bincount(parts.ravel()) >= smallest)[parts]
