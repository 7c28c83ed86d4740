"""A drilled, printed plate of brushed metal on a dark mat."""

from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d, map_coordinates

from data_tools.demo.product import Product
from fmad_dist.defects.canvas import Grid, Rng, blend, box, circle, on_canvas, scale, smooth_noise
from fmad_dist.defects.surface import Painted, contamination, scratch, stain

HALF = (0.80, 0.62)
HOLES = ((-0.66, -0.48), (0.66, -0.48), (-0.66, 0.48), (0.66, 0.48))
BORE = (0.0, -0.10, 0.24)
_LABEL = (320, 96)  # pixels of the print's drawing
_LABEL_HALF = (0.36, 0.108)


@dataclass(frozen=True, slots=True)
class Plate:
    centre: tuple[float, float]
    angle: float
    texture_seed: int
    holes: tuple[tuple[float, float, float], ...]  # x, y, radius
    label_at: tuple[float, float]
    label_ink: float
    label_worn: float = 0.0  # height of the threshold that wears the print off
    wear_seed: int = 0


def describe(rng: Rng, _held_out: bool) -> Plate:
    return Plate(
        centre=(rng.normal(0, 0.012), rng.normal(0, 0.012)),
        angle=rng.normal(0, 0.022),
        texture_seed=int(rng.integers(2**31)),
        holes=tuple((x + rng.normal(0, 0.004), y + rng.normal(0, 0.004), 0.072) for x, y in HOLES),
        label_at=(rng.normal(0, 0.006), 0.36 + rng.normal(0, 0.006)),
        label_ink=rng.uniform(0.80, 0.90),
    )


def paint(plate: Plate, grid: Grid) -> Painted:
    rng = np.random.default_rng(plate.texture_seed)
    mat = 0.13 + 0.012 * smooth_noise(rng, grid.size, 60)
    brushed = gaussian_filter1d(rng.standard_normal((grid.size, grid.size)), 14, axis=1, mode="wrap")
    metal = 0.62 + 0.20 * brushed + 0.02 * smooth_noise(rng, grid.size, 3)
    x, y = grid.local(plate.centre, plate.angle)
    outer = box(x, y, HALF, 0.10)
    bevel = np.clip(1 + outer / 0.03, 0, 1) * np.sign(-x - y)
    tone = metal * (1 + 0.22 * bevel)
    colour = mat[..., None] * np.array([1.0, 1.04, 1.1])
    colour = scale(colour, 1 - 0.5 * grid.coverage(box(x - 0.02, y - 0.02, HALF, 0.10), 9))
    body = grid.coverage(outer)
    colour = blend(colour, tone[..., None] * np.array([0.98, 1.0, 1.03]), body)
    for hole_x, hole_y, radius in (*plate.holes, BORE):
        at = on_canvas((hole_x, hole_y), plate.centre, plate.angle)
        near = grid.window(at, (radius + 0.08, radius + 0.08))
        _drill(grid, colour[near], body[near], x[near] - hole_x, y[near] - hole_y, radius)
    return Painted(_print(plate, grid, colour, x, y), body)


def _drill(grid: Grid, colour: np.ndarray, body: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> None:
    """A through hole with a countersunk edge, lit on the far side, cut into views of the colours and the body."""
    distance = circle(x, y, radius)
    facing = (x + y) / (np.hypot(x, y) + 1e-6) / np.sqrt(2)
    rimmed = scale(colour, 1 + 0.30 * facing * grid.coverage(np.abs(distance) - 0.014, 2))
    shade = 0.10 * (1 + 0.35 * facing)
    colour[:] = blend(rimmed, shade[..., None] * np.ones(3), grid.coverage(distance))
    body *= 1 - grid.coverage(distance - 0.03)


def _print(plate: Plate, grid: Grid, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    near = grid.window(on_canvas(plate.label_at, plate.centre, plate.angle), (_LABEL_HALF[0] + 0.05, 0.2))
    u = (x[near] - plate.label_at[0]) / _LABEL_HALF[0]
    v = (y[near] - plate.label_at[1]) / _LABEL_HALF[1]
    rows, columns = (v + 1) / 2 * _LABEL[1], (u + 1) / 2 * _LABEL[0]
    ink = map_coordinates(_drawing(), [rows, columns], order=1, mode="constant")
    if plate.label_worn:
        wear = smooth_noise(np.random.default_rng(plate.wear_seed), grid.size, 9)
        ink = ink * np.clip(0.5 + (wear[near] - plate.label_worn) * 4, 0, 1)
    colour[near] = blend(colour[near], (0.07, 0.09, 0.16), ink * plate.label_ink)
    return colour


@cache
def _drawing() -> np.ndarray:
    """Ink (96, 320) in [0, 1]: a type name and bars."""
    drawing = Image.new("L", _LABEL)
    draw = ImageDraw.Draw(drawing)
    draw.text((4, 8), "FM-27", fill=255, font=ImageFont.load_default(64))
    left = 206
    for width in (4, 9, 3, 6, 3, 10, 4, 3, 7, 4, 3):
        draw.rectangle((left, 14, left + width - 1, 80), fill=255)
        left += width + 4
    return np.asarray(drawing).astype(np.float64) / 255


def _no_hole(plate: Plate, rng: Rng, severity: float) -> Plate:
    """A hole that was not drilled, or (mild) was drilled too small or off its centre."""
    number = int(rng.integers(len(plate.holes)))
    x, y, radius = plate.holes[number]
    kept = plate.holes[:number] + plate.holes[number + 1 :]
    if severity > 0.5:
        return replace(plate, holes=kept)
    angle, far = rng.uniform(0, 2 * np.pi), 0.03 + 0.08 * severity
    moved = (x + far * np.cos(angle), y + far * np.sin(angle), radius * rng.uniform(0.75, 1.0))
    return replace(plate, holes=(*kept, moved))


def _bad_print(plate: Plate, rng: Rng, severity: float) -> Plate:
    """Worn ink, or a label in the wrong position."""
    if rng.uniform() < 0.6:
        return replace(plate, label_worn=-0.6 + 1.4 * severity, wear_seed=int(rng.integers(2**31)))
    x, y = plate.label_at
    side = rng.choice([-1, 1])
    return replace(plate, label_at=(x + side * (0.04 + 0.10 * severity), y + rng.normal(0, 0.02)))


PLATE = Product(
    name="drilled_plate",
    describe=describe,
    paint=paint,
    changes={"hole": _no_hole, "print": _bad_print},
    overlays={
        "scratch": partial(scratch, light=0.95),
        "stain": partial(stain, tint=(0.55, 0.42, 0.28)),
        "contamination": partial(contamination, paints=((0.45, 0.12, 0.08), (0.12, 0.14, 0.12), (0.75, 0.68, 0.45))),
    },
)
