"""A real surface: crops of the brick photograph that scikit-image ships (public domain, from CC0Textures).

Training crops come from the left half of the photograph, test crops from the right half. It is foreshortened from top
to bottom, alike on both sides but for a reflection, which the random mirroring makes up for.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import map_coordinates

from data_tools.demo.canvas import Grid
from data_tools.demo.flaws import contamination, crack, hole, stain
from data_tools.demo.product import Flaw, Painted, Product

_CROP = 232.0  # pixels of the photograph that one picture shows


@dataclass(frozen=True, slots=True)
class Crop:
    left: float
    top: float
    mirrored: bool
    zoom: float


def describe(rng: np.random.Generator, held_out: bool) -> Crop:
    half = 256.0 if held_out else 0.0
    zoom = rng.uniform(0.96, 1.04)
    return Crop(
        left=half + rng.uniform(0, 255 - _CROP * zoom),
        top=rng.uniform(120, 511 - _CROP * zoom),
        mirrored=bool(rng.integers(2)),
        zoom=zoom,
    )


def paint(crop: Crop, grid: Grid) -> Painted:
    x = -grid.x if crop.mirrored else grid.x
    columns = crop.left + (x + 1) / 2 * _CROP * crop.zoom
    rows = crop.top + (grid.y + 1) / 2 * _CROP * crop.zoom
    grey = map_coordinates(_photograph(), [rows, columns], order=1, mode="nearest")
    return Painted(np.repeat(grey[..., None], 3, axis=2), np.ones(grey.shape))


@cache
def _photograph() -> np.ndarray:
    """Grey values (512, 512) in [0, 1]; the file is part of the installed package, nothing is fetched."""
    from skimage import data

    return data.brick().astype(np.float64) / 255


BRICK = Product(
    "brick",
    describe,
    paint,
    {
        "crack": Flaw(overlay=crack(0.2)),
        "hole": Flaw(overlay=hole((0.14, 0.14, 0.14), 0.04, 0.10)),
        "paint": Flaw(overlay=contamination(((0.9, 0.9, 0.9), (0.15, 0.15, 0.15)))),
        "damp": Flaw(overlay=stain((0.5, 0.5, 0.5))),
    },
    grey=True,
)
