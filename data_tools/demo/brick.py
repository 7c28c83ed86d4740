"""A real surface: crops of the brick photograph that scikit-image ships (public domain, from CC0Textures).

The photograph looks along the wall, so it is rectified first. Training crops come from the left half of the wall, test
crops from the right half.
"""

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.ndimage import map_coordinates

from data_tools.demo.product import Product
from fmad_dist.defects.canvas import Grid, Rng
from fmad_dist.defects.surface import Painted, contamination, crack, hole, stain

_SIDE = 512  # pixels of the photograph
_HORIZON = -1500.0  # row in which the joints of the bricks would meet
_MIDDLE = 226.0  # column of the joint that is upright
_LEFT, _RIGHT = 30.0, 474.0  # columns of the rectified wall that the photograph covers in every row
_CROP = 205.0  # rectified pixels that one picture shows


@dataclass(frozen=True, slots=True)
class Crop:
    left: float
    top: float
    mirrored: bool
    zoom: float


def describe(rng: Rng, held_out: bool) -> Crop:
    zoom = rng.uniform(0.96, 1.04)
    first = (_LEFT + _RIGHT) / 2 if held_out else _LEFT
    return Crop(
        left=first + rng.uniform(0, (_RIGHT - _LEFT) / 2 - _CROP * zoom),
        top=rng.uniform(0, _SIDE - 1 - _CROP * zoom),
        mirrored=bool(rng.integers(2)),
        zoom=zoom,
    )


def paint(crop: Crop, grid: Grid) -> Painted:
    x = -grid.x if crop.mirrored else grid.x
    columns = crop.left + (x + 1) / 2 * _CROP * crop.zoom
    rows = crop.top + (grid.y + 1) / 2 * _CROP * crop.zoom
    grey = map_coordinates(_photograph(), _seen_at(rows, columns), order=1, mode="nearest")
    return Painted(np.repeat(grey[..., None], 3, axis=2), np.ones(grey.shape))


def _seen_at(rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    """Where points of the wall lie in the photograph: depth is inverse to the distance from the horizon."""
    near, far = 1 / (_SIDE - _HORIZON), 1 / -_HORIZON
    from_horizon = 1 / (far + (near - far) * rows / _SIDE)
    scale = from_horizon / (_SIDE / 2 - _HORIZON)
    return [from_horizon + _HORIZON, _MIDDLE + (columns - _MIDDLE) * scale]


@cache
def _photograph() -> np.ndarray:
    """Grey values (512, 512) in [0, 1]; the file is part of the installed package, nothing is fetched."""
    from skimage import data

    return data.brick().astype(np.float64) / 255


BRICK = Product(
    name="brick",
    describe=describe,
    paint=paint,
    overlays={
        "crack": partial(crack, depth=0.2),
        "hole": partial(hole, depth=(0.14, 0.14, 0.14), radii=(0.04, 0.10)),
        "paint": partial(contamination, paints=((0.9, 0.9, 0.9), (0.15, 0.15, 0.15))),
        "damp": partial(stain, tint=(0.5, 0.5, 0.5)),
    },
    grey=True,
)
