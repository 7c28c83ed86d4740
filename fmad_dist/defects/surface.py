"""Defects on a surface: each takes what is painted and returns other colours in a bounded region, and only there.

Parameters behind the four that all share are bound with `functools.partial`. Severity is 0 (just visible) to 1 (clear).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fmad_dist.defects.canvas import Colour, Grid, Rng, blend, polyline, scale, smooth_noise


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture of a product, before a camera sees it or as a camera saw it."""

    colour: np.ndarray  # (S, S, 3) in [0, 1]
    body: np.ndarray  # (S, S) in [0, 1]: where surface defects may lie


Overlay = Callable[[Grid, Painted, Rng, float], np.ndarray]  # (grid, painted, rng, severity) -> colour (S, S, 3)


def random_point(grid: Grid, painted: Painted, rng: Rng, margin: float = 0.85) -> np.ndarray:
    """A random point (2,) on the product's body, not too close to the picture's border."""
    inside = painted.body * (np.maximum(np.abs(grid.x), np.abs(grid.y)) < margin) > 0.99
    row, column = np.argwhere(inside)[rng.integers(np.count_nonzero(inside))]
    return np.array([grid.x[row, column], grid.y[row, column]])


def wandering_line(rng: Rng, start: np.ndarray, length: float, bend: float) -> np.ndarray:
    """Points (17, 2) of a line that keeps changing its direction by about `bend` radians."""
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, 16))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / 16
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return points - points.mean(axis=0) + start


def blob(grid: Grid, rng: Rng, centre: np.ndarray, radius: float, roughness: float = 0.25) -> np.ndarray:
    """Distance (S, S) to an irregular, roundish outline."""
    x, y = grid.local((centre[0], centre[1]), rng.uniform(0, np.pi))
    angle = np.arctan2(y, x)
    waves = sum(rng.normal(0, roughness / (n**0.8)) * np.cos(n * angle + rng.uniform(0, 6.3)) for n in range(2, 8))
    stretch = rng.uniform(0.75, 1.3)
    return np.hypot(x * stretch, y / stretch) - radius * np.clip(1 + waves, 0.35, 1.8)


def scratch(grid: Grid, painted: Painted, rng: Rng, severity: float, *, light: float, width: float = 1.0) -> np.ndarray:
    """A fine line that shines where the surface is dull; `light` is its brightness at full severity."""
    points = wandering_line(rng, random_point(grid, painted, rng), rng.uniform(0.4, 1.0), 0.09)
    slant, colour = rng.normal(0, 0.04, 2), painted.colour
    for number in range(1 + int(rng.integers(3))):
        distance, along = polyline(grid.x, grid.y, points + number * slant)
        depth = np.sin(np.pi * (0.1 + 0.8 * along)) * (0.55 + 0.45 * severity) * 0.8**number * painted.body
        half = width * (0.15 + 0.35 * severity) * grid.pixel
        colour = scale(colour, 1 - 0.35 * depth * grid.coverage(np.abs(distance - 1.6 * grid.pixel), 1.2))
        colour = blend(colour, (light, light, light), depth * grid.coverage(distance - half))
    return colour


def stain(grid: Grid, painted: Painted, rng: Rng, severity: float, *, tint: Colour) -> np.ndarray:
    """A dried liquid: multiplies the colours by `tint`, more at its rim."""
    radius = rng.uniform(0.09, 0.2)
    distance = blob(grid, rng, random_point(grid, painted, rng), radius)
    inside = grid.coverage(distance, 3) * painted.body
    rim = np.exp(-((distance / (0.12 * radius + grid.pixel)) ** 2))
    cloud = np.clip(0.8 + 0.25 * smooth_noise(rng, grid.size, 12) + 0.5 * rim, 0, 1.5)
    amount = inside * cloud * (0.28 + 0.62 * severity)
    return painted.colour * (1 + amount[..., None] * (np.array(tint) - 1))


def hole(
    grid: Grid, painted: Painted, rng: Rng, severity: float, *, depth: Colour, radii: tuple[float, float]
) -> np.ndarray:
    """A pit or puncture: dark ground, a shadow on one side and a lit rim on the other; radii at severity 0 and 1."""
    centre = random_point(grid, painted, rng)
    radius = radii[0] + (radii[1] - radii[0]) * severity
    distance = blob(grid, rng, centre, radius, 0.18)
    lit = np.clip((grid.x - centre[0] + grid.y - centre[1]) / radius, -1, 1)
    rim = grid.coverage(np.abs(distance) - 1.5 * grid.pixel, 2) * painted.body
    colour = scale(painted.colour, 1 + 0.35 * rim * lit)
    ground = np.array(depth) * (1 + 0.25 * np.clip(smooth_noise(rng, grid.size, 40), -2, 2))[..., None]
    return blend(colour, ground, grid.coverage(distance, 1.5) * painted.body * (0.75 + 0.25 * severity))


def contamination(grid: Grid, painted: Painted, rng: Rng, severity: float, *, paints: tuple[Colour, ...]) -> np.ndarray:
    """Some foreign particles with small shadows."""
    colour, centre = painted.colour, random_point(grid, painted, rng)
    paint = paints[rng.integers(len(paints))]
    for _ in range(int(rng.integers(1, 5))):
        radius = rng.uniform(0.018, 0.03) + 0.03 * severity
        distance = blob(grid, rng, centre + rng.normal(0, 0.08, 2), radius, 0.16)
        shadow = grid.coverage(np.roll(distance, (2, 2), (0, 1)), 3) * painted.body
        colour = scale(colour, 1 - 0.35 * shadow)
        shade = 1 - 0.35 * np.clip(1 + distance / radius, 0, 1)
        colour = blend(colour, np.array(paint) * shade[..., None], grid.coverage(distance, 1.5) * painted.body)
    return colour


def crack(grid: Grid, painted: Painted, rng: Rng, severity: float, *, depth: float, bend: float = 0.35) -> np.ndarray:
    """A thin dark line that changes direction and branches once."""
    trunk = wandering_line(rng, random_point(grid, painted, rng, 0.7), rng.uniform(0.4, 0.8), bend)
    fork = trunk[rng.integers(5, 12)]
    branch = wandering_line(rng, fork, rng.uniform(0.15, 0.3), bend)
    branch = branch - branch[0] + fork
    colour = painted.colour
    for points, weight in ((trunk, 1.0), (branch, 0.7)):
        distance, along = polyline(grid.x, grid.y, points)
        width = weight * (0.5 + 1.3 * severity) * grid.pixel * (1.15 - along)
        inside = grid.coverage(distance - width, 1.6) * painted.body * (0.5 + 0.5 * severity)
        colour = scale(colour, 1 - (1 - depth) * inside)
    return colour


def cut(grid: Grid, painted: Painted, rng: Rng, severity: float, *, ground: Colour, thread: Colour) -> np.ndarray:
    """A slit that gapes in the middle, with loose ends standing up from its edges."""
    centre = random_point(grid, painted, rng, 0.65)
    angle, half = rng.uniform(0, np.pi), rng.uniform(0.12, 0.2) + 0.14 * severity
    x, y = grid.local((centre[0], centre[1]), angle)
    gape = (0.014 + 0.03 * severity) * np.clip(1 - (x / half) ** 2, 0, None) - 0.5 * grid.pixel
    distance = np.where(np.abs(x) < half, np.abs(y) - gape, 1.0)
    colour = scale(painted.colour, 1 - 0.3 * grid.coverage(distance - 0.02, 8) * (np.abs(x) < half))
    colour = blend(colour, ground, grid.coverage(distance, 1.5) * 0.9)
    for _ in range(int(4 + 10 * severity)):
        start = np.array([rng.uniform(-0.9, 0.9) * half, 0.0])
        end = start + np.array([rng.normal(0, 0.02), rng.choice([-1, 1]) * rng.uniform(0.02, 0.07)])
        end = end * np.array([1.0, np.clip(1 - (start[0] / half) ** 2, 0.3, 1)])
        fray, _ = polyline(x, y, np.stack([start, end]))
        colour = blend(colour, thread, 0.7 * grid.coverage(fray - 0.5 * grid.pixel, 1.2))
    return colour


def loose_thread(grid: Grid, painted: Painted, rng: Rng, severity: float, *, paint: Colour) -> np.ndarray:
    """A curled thread lying on the surface, with its shadow."""
    points = wandering_line(rng, random_point(grid, painted, rng, 0.6), rng.uniform(0.6, 1.4), 0.45)
    distance, _ = polyline(grid.x, grid.y, points)
    width = (0.8 + 0.8 * severity) * grid.pixel
    shadow, _ = polyline(grid.x - 2.5 * grid.pixel, grid.y - 2.5 * grid.pixel, points)
    colour = scale(painted.colour, 1 - 0.4 * grid.coverage(shadow - width, 2.5))
    shade = 1 - 0.3 * np.clip(distance / width, 0, 1)
    return blend(colour, np.array(paint) * shade[..., None], (0.55 + 0.45 * severity) * grid.coverage(distance - width))
