"""A turned steel gear with a keyed bore, lying on a light table."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from data_tools.demo.product import Product
from fmad_dist.defects.canvas import Grid, Rng, blend, box, circle, on_canvas, scale, smooth_noise
from fmad_dist.defects.surface import Painted, contamination, crack, scratch

NUM_TEETH = 24
ROOT, TIP = 0.68, 0.82  # radii
_PITCH = 2 * np.pi / NUM_TEETH


@dataclass(frozen=True, slots=True)
class Gear:
    centre: tuple[float, float]
    angle: float
    texture_seed: int
    shine: float  # direction of the conical highlight
    teeth: tuple[float, ...]  # height of each tooth, 1 = whole
    burr: float = 0.0  # size of metal left standing in the keyway


def describe(rng: Rng, _held_out: bool) -> Gear:
    return Gear(
        centre=(rng.normal(0, 0.012), rng.normal(0, 0.012)),
        angle=rng.normal(0, 0.05),
        texture_seed=int(rng.integers(2**31)),
        shine=rng.normal(0.7, 0.12),
        teeth=(1.0,) * NUM_TEETH,
    )


def paint(gear: Gear, grid: Grid) -> Painted:
    rng = np.random.default_rng(gear.texture_seed)
    x, y = grid.local(gear.centre, gear.angle)
    radius, angle = np.hypot(x, y), np.arctan2(y, x) % (2 * np.pi)
    outer = _tooth_distance(gear, radius, angle)
    table = np.array([0.74, 0.72, 0.68]) * (1 + 0.018 * smooth_noise(rng, grid.size, 90))[..., None]
    shadow = np.roll(outer, (5, 5), axis=(0, 1))
    colour = scale(table, 1 - 0.38 * grid.coverage(shadow, 10))
    colour = blend(colour, _metal(gear, grid, rng, radius, angle, outer), grid.coverage(outer))
    body = grid.coverage(outer + 0.02)
    for number in range(6):
        spoke = (number + 0.5) * np.pi / 3
        at = (0.47 * float(np.cos(spoke)), 0.47 * float(np.sin(spoke)))
        near = grid.window(on_canvas(at, gear.centre, gear.angle), (0.18, 0.18))
        _open(grid, colour[near], body[near], table[near], circle(x[near] - at[0], y[near] - at[1], 0.095))
    near = grid.window(gear.centre, (0.36, 0.36))
    keyway = box(x[near] - 0.21, y[near], (0.07 - gear.burr, 0.05))
    bore = np.minimum(circle(x[near], y[near], 0.20), keyway)
    _open(grid, colour[near], body[near], table[near], bore)
    return Painted(colour, body)


def _tooth_distance(gear: Gear, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Approximate distance (S, S) to the toothed outline."""
    tooth = np.floor(angle / _PITCH).astype(np.int64) % NUM_TEETH
    phase = angle / _PITCH - np.floor(angle / _PITCH) - 0.5  # 0 in the middle of a tooth
    flank = np.clip((0.33 - np.abs(phase)) / 0.14, 0, 1)
    height = (TIP - ROOT) * np.asarray(gear.teeth)[tooth] * flank
    return (radius - ROOT - height) * 0.8


def _metal(gear: Gear, grid: Grid, rng: Rng, radius: np.ndarray, angle: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Turned face: concentric tool marks, a conical highlight, a darker hub ring and a lit edge."""
    marks = np.interp(radius, np.linspace(0, 1.5, 400), rng.standard_normal(400))
    cone = np.cos(2 * (angle + gear.angle - gear.shine))
    tone = 0.50 + 0.035 * marks + 0.10 * cone + 0.012 * smooth_noise(rng, grid.size, 110)
    tone = tone * (1 - 0.22 * grid.coverage(np.abs(radius - 0.31) - 0.008, 2))
    tone = tone * (1 - 0.16 * grid.coverage(np.abs(radius - 0.63) - 0.006, 2))
    edge = np.clip(1 + outer / 0.022, 0, 1)
    lit = np.cos(angle + gear.angle - 3.9)
    return (tone * (1 + 0.28 * edge * lit))[..., None] * np.array([1.0, 1.01, 1.04])


def _open(grid: Grid, colour: np.ndarray, body: np.ndarray, table: np.ndarray, distance: np.ndarray) -> None:
    """Cut a hole through which the shaded table is seen, into views of the colours and the body."""
    rimmed = scale(colour, 1 + 0.18 * grid.coverage(np.abs(distance) - 0.010, 2))
    shade = 0.75 - 0.3 * np.clip(1 + np.roll(distance, (4, 4), axis=(0, 1)) / 0.05, 0, 1)
    colour[:] = blend(rimmed, scale(table, shade), grid.coverage(distance))
    body *= grid.coverage(0.03 - distance)


def _broken_tooth(gear: Gear, rng: Rng, severity: float) -> Gear:
    """One to three neighbouring teeth are chipped or missing."""
    first, count = int(rng.integers(NUM_TEETH)), 1 + int(severity > 0.7) + int(severity > 0.9)
    teeth = list(gear.teeth)
    for number in range(first, first + count):
        teeth[number % NUM_TEETH] = float(np.clip(0.75 - severity + rng.normal(0, 0.08), 0, 0.8))
    return replace(gear, teeth=tuple(teeth))


def _blocked_keyway(gear: Gear, rng: Rng, severity: float) -> Gear:
    """The keyway was not cut to its full length."""
    return replace(gear, burr=0.02 + 0.05 * severity + abs(rng.normal(0, 0.004)))


GEAR = Product(
    name="gear",
    describe=describe,
    paint=paint,
    changes={"tooth": _broken_tooth, "keyway": _blocked_keyway},
    overlays={
        "scratch": partial(scratch, light=0.92),
        "crack": partial(crack, depth=0.25),
        "rust": partial(contamination, paints=((0.48, 0.24, 0.10), (0.38, 0.18, 0.08))),
    },
)
