"""A blister pack with six two-coloured capsules on embossed foil."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from data_tools.demo.product import Product
from fmad_dist.defects.canvas import Colour, Grid, Rng, blend, box, scale, segment, smooth_noise
from fmad_dist.defects.surface import Painted, contamination, crack, hole

CENTRES = tuple((x, y) for y in (-0.36, 0.36) for x in (-0.54, 0.0, 0.54))
RED: Colour = (0.70, 0.13, 0.10)
CREAM: Colour = (0.90, 0.85, 0.70)
_WRONG: tuple[Colour, ...] = ((0.80, 0.38, 0.10), (0.45, 0.12, 0.30), (0.22, 0.36, 0.55))
_RADIUS, _HALF_LENGTH = 0.115, 0.125
_POCKET_REACH = (0.27, 0.40)  # a pocket and its shadows, wherever the variation moves it


@dataclass(frozen=True, slots=True)
class Capsule:
    at: tuple[float, float]
    angle: float  # of its axis from the vertical
    cap: Colour = RED
    filled: float = 1.0  # part of its length that is there, from the cap on


@dataclass(frozen=True, slots=True)
class Blister:
    centre: tuple[float, float]
    angle: float
    texture_seed: int
    capsules: tuple[Capsule | None, ...]


def describe(rng: Rng, _held_out: bool) -> Blister:
    capsules = tuple(
        Capsule((x + rng.normal(0, 0.008), y + rng.normal(0, 0.010)), rng.normal(0, 0.05)) for x, y in CENTRES
    )
    centre = (rng.normal(0, 0.012), rng.normal(0, 0.012))
    return Blister(centre, rng.normal(0, 0.015), int(rng.integers(2**31)), capsules)


def paint(blister: Blister, grid: Grid) -> Painted:
    rng = np.random.default_rng(blister.texture_seed)
    x, y = grid.local(blister.centre, blister.angle)
    emboss = np.cos(46 * (x + y)) * np.cos(46 * (x - y))
    foil = 0.60 + 0.055 * emboss + 0.03 * smooth_noise(rng, grid.size, 6) + 0.012 * smooth_noise(rng, grid.size, 120)
    colour = foil[..., None] * np.array([0.98, 1.0, 1.03])
    body = np.zeros_like(x)
    for centre, capsule in zip(CENTRES, blister.capsules, strict=True):
        near = grid.window(centre, _POCKET_REACH)
        part = _cavity(grid, colour[near], x[near] - centre[0], y[near] - centre[1])
        if capsule is not None:
            part, covered = _capsule(grid, part, capsule, x[near], y[near])
            body[near] = np.maximum(body[near], covered)
        colour[near] = _plastic_shine(grid, part, x[near] - centre[0], y[near] - centre[1])
    return Painted(colour, body)


def _cavity(grid: Grid, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The formed pocket: a dark wall on the lit side, a bright one opposite, a smooth floor."""
    distance = box(x, y, (0.185, 0.305), 0.18)
    wall = grid.coverage(np.abs(distance) - 0.020, 3)
    colour = blend(colour, (0.55, 0.565, 0.58), 0.85 * grid.coverage(distance))
    return scale(colour, 1 + 0.38 * wall * np.clip((x + 1.5 * y) / 0.35, -1, 1))


def _capsule(
    grid: Grid, colour: np.ndarray, capsule: Capsule, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one capsule; returns also where it is."""
    cos, sin = np.cos(capsule.angle), np.sin(capsule.angle)
    x, y = x - capsule.at[0], y - capsule.at[1]
    across, along = cos * x + sin * y, cos * y - sin * x
    end = -_HALF_LENGTH + 2 * _HALF_LENGTH * capsule.filled
    axis = segment(across, along, np.array([0.0, -_HALF_LENGTH]), np.array([0.0, _HALF_LENGTH]))
    distance = axis - _RADIUS
    if capsule.filled < 1:
        jagged = 0.014 * np.sin(58 * across) + 0.008 * np.sin(131 * across + 1)
        distance = np.maximum(distance, along - end - jagged)
    covered = grid.coverage(distance)
    colour = scale(colour, 1 - 0.45 * grid.coverage(np.roll(distance, (4, 3), axis=(0, 1)), 8))
    seam = grid.coverage(along)[..., None]
    paint = np.array(capsule.cap) * seam + np.array(CREAM) * (1 - seam)
    height = np.sqrt(np.clip(1 - (axis / _RADIUS) ** 2, 0, 1))
    shade = 0.45 + 0.55 * height - 0.12 * across / _RADIUS
    shade = shade * (1 - 0.25 * grid.coverage(np.abs(along) - 0.006, 2))
    gloss = 0.6 * np.exp(-(((across + 0.045) / 0.018) ** 2)) * np.clip(1 - np.abs(along) / 0.17, 0, 1)
    paint = paint * shade[..., None] + gloss[..., None] * 0.7
    return blend(colour, paint, covered), covered


def _plastic_shine(grid: Grid, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The clear film over the pocket reflects a lamp along its upper left edge."""
    arc = grid.coverage(np.abs(box(x, y, (0.150, 0.270), 0.145)) - 0.006, 2.5)
    return blend(colour, (0.95, 0.96, 0.98), 0.40 * arc * np.clip((-x - y) / 0.25 - 0.3, 0, 1))


def _missing(blister: Blister, rng: Rng, _severity: float) -> Blister:
    return _with(blister, int(rng.integers(len(CENTRES))), None)


def _broken(blister: Blister, rng: Rng, severity: float) -> Blister:
    """A part of the capsule has broken off."""
    number = int(rng.integers(len(CENTRES)))
    capsule = blister.capsules[number]
    assert capsule is not None
    return _with(blister, number, replace(capsule, filled=0.95 - 0.6 * severity - 0.15 * rng.uniform()))


def _wrong_colour(blister: Blister, rng: Rng, severity: float) -> Blister:
    """A capsule of another product; mild ones differ by a shade."""
    number = int(rng.integers(len(CENTRES)))
    capsule, other = blister.capsules[number], np.array(_WRONG[rng.integers(len(_WRONG))])
    assert capsule is not None
    mixed = np.array(RED) + (other - np.array(RED)) * (0.3 + 0.7 * severity)
    return _with(blister, number, replace(capsule, cap=(float(mixed[0]), float(mixed[1]), float(mixed[2]))))


def _with(blister: Blister, number: int, capsule: Capsule | None) -> Blister:
    return replace(blister, capsules=(*blister.capsules[:number], capsule, *blister.capsules[number + 1 :]))


BLISTER = Product(
    name="blister",
    describe=describe,
    paint=paint,
    changes={"missing": _missing, "broken": _broken, "colour": _wrong_colour},
    overlays={
        "crack": partial(crack, depth=0.2, bend=0.25),
        "dent": partial(hole, depth=(0.25, 0.10, 0.08), radii=(0.02, 0.055)),
        "contamination": partial(contamination, paints=((0.10, 0.10, 0.12), (0.20, 0.35, 0.20), (0.92, 0.92, 0.90))),
    },
)
