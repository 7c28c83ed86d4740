"""What a demo product is, and how one photograph of it with or without a defect is rendered.

The same seed renders the same product under the same light and sensor noise, so the mask of a defect is exactly the set
of pixels in which the photographs with and without it differ.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmad_dist.defects.canvas import Grid, Rng
from fmad_dist.defects.surface import Overlay, Painted

_NOISE = 0.010  # deviation of the sensor noise, of full scale
_VISIBLE = 10  # grey levels of 255
_VISIBLE_PART = 0.0004  # of the picture: 26 pixels of 256 x 256


Change = Callable[[Any, Rng, float], Any]  # (parts, rng, severity) -> parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A class of the demo dataset: how one specimen varies, how it is drawn, and its kinds of defects by name.

    A defect changes the product's parts or lies on its surface. Its severity is 0 (just visible) to 1 (clear).
    """

    name: str
    describe: Callable[[Rng, bool], Any]  # (rng, held_out) -> parts of one specimen
    paint: Callable[[Any, Grid], Painted]
    changes: Mapping[str, Change] = field(default_factory=dict)
    overlays: Mapping[str, Overlay]
    grey: bool = False  # photographed by a camera without colour

    @property
    def defects(self) -> list[str]:
        """The names of all kinds of defects, sorted."""
        return sorted([*self.changes, *self.overlays])


def photograph(
    product: Product, size: int, seed: tuple[int, ...], defect: str | None = None, held_out: bool = False
) -> np.ndarray:
    """8-bit pixels (S, S, 3), or (S, S) for a grey product. `held_out` asks for a specimen no training image shows.

    The defect has its own random stream, so that it does not disturb the specimen, the light and the noise.
    """
    grid = Grid(size)
    rng = np.random.default_rng([zlib.crc32(product.name.encode()), *seed])
    parts = product.describe(rng, held_out)
    light, noise = _light(rng, grid), rng.standard_normal((size, size, 3)) * _NOISE
    if defect is None:
        colour = product.paint(parts, grid).colour
    else:
        colour = _with_defect(product, defect, parts, grid, np.random.default_rng([*seed, 1]))
    if product.grey:
        return _quantised(colour[..., 0] * light + noise[..., 0])
    return _quantised(colour * light[..., None] + noise)


def defect_mask(normal: np.ndarray, defective: np.ndarray) -> np.ndarray:
    """Bool (S, S): every pixel in which two photographs of the same specimen differ."""
    changed = normal != defective
    return changed if changed.ndim == 2 else changed.any(axis=-1)


def is_visible(normal: np.ndarray, defective: np.ndarray) -> bool:
    """Whether someone could see the defect: enough of the picture changes by more than the sensor noise."""
    change = np.abs(normal.astype(np.int16) - defective)
    change = change if change.ndim == 2 else change.max(axis=-1)
    return np.count_nonzero(change >= _VISIBLE) >= max(_VISIBLE_PART * change.size, 2)


def _with_defect(product: Product, defect: str, parts: Any, grid: Grid, rng: Rng) -> np.ndarray:
    severity = float(rng.uniform(0, 1))
    if defect in product.changes:
        return product.paint(product.changes[defect](parts, rng, severity), grid).colour
    return product.overlays[defect](grid, product.paint(parts, grid), rng, severity)


def _light(rng: Rng, grid: Grid) -> np.ndarray:
    """Brightness (S, S): exposure, a slope in a random direction, and darker corners."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.06)
    gradient = slope * (np.cos(angle) * grid.x + np.sin(angle) * grid.y)
    return rng.uniform(0.94, 1.06) * (1 + gradient - 0.05 * (grid.x**2 + grid.y**2))


def _quantised(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
