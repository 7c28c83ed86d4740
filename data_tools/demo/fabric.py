"""A twill fabric with a faint stripe, seen close enough to tell the yarns apart."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from data_tools.demo.product import Product
from fmad_dist.defects.canvas import Grid, Rng, scale, smooth_noise
from fmad_dist.defects.surface import Painted, cut, hole, loose_thread, stain

_YARNS = 44  # per picture side


@dataclass(frozen=True, slots=True)
class Fabric:
    shift: tuple[float, float]  # in yarns
    angle: float
    texture_seed: int
    pulled: tuple[float, float, float] = (0.0, 0.0, 0.0)  # centre, half length and amount of a gap


def describe(rng: Rng, _held_out: bool) -> Fabric:
    shift = (float(rng.uniform(0, 4)), float(rng.uniform(0, 4)))
    return Fabric(shift, rng.normal(0, 0.02), int(rng.integers(2**31)))


def paint(fabric: Fabric, grid: Grid) -> Painted:
    rng = np.random.default_rng(fabric.texture_seed)
    x, y = grid.local((0.0, 0.0), fabric.angle)
    u = (x + 1) * _YARNS / 2 + fabric.shift[0] + 0.18 * smooth_noise(rng, grid.size, 5)
    v = (y + 1) * _YARNS / 2 + fabric.shift[1] + 0.18 * smooth_noise(rng, grid.size, 5)
    warp, weft = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    over = (warp + weft) % 4 < 2  # 2/2 twill: each yarn passes over two and under two
    uneven = rng.normal(1, 0.05, (2, 128))
    across_warp, across_weft = np.abs(u - warp - 0.5), np.abs(v - weft - 0.5)
    lit_warp = (1 - 1.5 * across_warp**2) * (0.82 + 0.18 * np.cos(np.pi * (v - weft - 0.5))) * uneven[0][warp % 128]
    lit_weft = (1 - 1.5 * across_weft**2) * (0.82 + 0.18 * np.cos(np.pi * (u - warp - 0.5))) * uneven[1][weft % 128]
    stripe = np.where(warp % 16 < 2, 1.0, 0.0)[..., None]
    warp_colour = np.array([0.30, 0.40, 0.54]) * (1 - stripe) + np.array([0.62, 0.62, 0.58]) * stripe
    weft_colour = np.array([0.42, 0.50, 0.60])
    gap = _gap(fabric, x, weft)
    lit_weft = lit_weft * (1 - gap)
    colour = np.where(over[..., None], warp_colour * lit_warp[..., None], weft_colour * lit_weft[..., None])
    fuzz = 1 + 0.05 * rng.standard_normal((grid.size, grid.size)) + 0.03 * smooth_noise(rng, grid.size, 24)
    return Painted(scale(colour, fuzz), np.ones((grid.size, grid.size)))


def _gap(fabric: Fabric, x: np.ndarray, weft: np.ndarray) -> np.ndarray:
    """How much of the weft is missing, (S, S) in [0, 1]."""
    centre, half, amount = fabric.pulled
    if not half:
        return np.zeros(x.shape)
    row = int((centre + 1) * _YARNS / 2 + fabric.shift[1])
    return np.where((weft == row) & (np.abs(x - centre * 0.3) < half), amount, 0.0)


def _pulled_yarn(fabric: Fabric, rng: Rng, severity: float) -> Fabric:
    return replace(fabric, pulled=(rng.uniform(-0.8, 0.8), rng.uniform(0.25, 0.7), 0.45 + 0.5 * severity))


FABRIC = Product(
    name="fabric",
    describe=describe,
    paint=paint,
    changes={"pulled_yarn": _pulled_yarn},
    overlays={
        "cut": partial(cut, ground=(0.07, 0.07, 0.09), thread=(0.66, 0.70, 0.76)),
        "hole": partial(hole, depth=(0.08, 0.08, 0.10), radii=(0.035, 0.10)),
        "stain": partial(stain, tint=(0.62, 0.50, 0.40)),
        "thread": partial(loose_thread, paint=(0.80, 0.78, 0.72)),
    },
)
