"""Defects made of the picture itself: pieces of it elsewhere, its texture mixed up, its parts bent.

They have the signature of those in `surface` and change a bounded region only.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from fmad_dist.defects.canvas import Grid, Rng, blend, box
from fmad_dist.defects.surface import Painted, blob, random_point

FAR = 0.35  # a piece comes from at least so far away, where the product is large enough
TILES = 8  # per side, of a picture whose texture is mixed up


def cut_paste(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """A patch of another part of the product, turned (after CutPaste, Li et al., 2021)."""
    centre = random_point(grid, painted, rng)
    distance = blob(grid, rng, centre, rng.uniform(0.07, 0.12) + 0.08 * severity)
    return _pasted(grid, painted, rng, centre, grid.coverage(distance), 0.06)


def scar(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """A thin strip of another part of the product in other colours (after CutPaste-Scar, Li et al., 2021)."""
    centre = random_point(grid, painted, rng)
    x, y = grid.local((centre[0], centre[1]), rng.uniform(0, np.pi))
    half = (rng.uniform(0.08, 0.16) + 0.12 * severity, rng.uniform(0.012, 0.022) + 0.02 * severity)
    return _pasted(grid, painted, rng, centre, grid.coverage(box(x, y, half, 0.01)), 0.18)


def texture(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """Another texture in the ragged regions where Perlin noise is high (after DRAEM, Zavrtanik et al., 2021). The
    texture is the picture itself in shuffled tiles and in other colours, so that no other images are needed [ours]."""
    near = grid.coverage(blob(grid, rng, random_point(grid, painted, rng), rng.uniform(0.16, 0.34)))
    noise = perlin(rng, grid.size, (int(2 ** rng.integers(2, 5)), int(2 ** rng.integers(2, 5))))
    region = np.clip(8 * (noise - rng.uniform(0.0, 0.15)), 0, 1) * near * painted.body
    paint = _shuffled(painted.colour, rng) * rng.uniform(0.6, 1.25) * rng.uniform(0.85, 1.15, 3)
    return blend(painted.colour, paint, (0.35 + 0.55 * severity) * region)


def deformation(grid: Grid, painted: Painted, rng: Rng, severity: float) -> np.ndarray:
    """A part of the product pushed aside and turned; it is put where the picture has structure to bend."""
    centre = _structured_point(grid, painted, rng)
    radius = rng.uniform(0.12, 0.24)
    x, y = grid.local((centre[0], centre[1]), 0.0)
    weight = np.clip(1 - (x**2 + y**2) / radius**2, 0, 1) ** 2
    push, heading = radius * (0.15 + 0.35 * severity), rng.uniform(0, 2 * np.pi)
    turn = weight * rng.uniform(-0.8, 0.8) * (0.3 + 0.7 * severity)
    from_x = np.cos(turn) * x - np.sin(turn) * y - weight * push * np.cos(heading)
    from_y = np.sin(turn) * x + np.cos(turn) * y - weight * push * np.sin(heading)
    moved = _sampled(grid, painted.colour, from_x + centre[0], from_y + centre[1])
    return np.where((weight > 0)[..., None], moved, painted.colour)


def perlin(rng: Rng, size: int, cells: tuple[int, int]) -> np.ndarray:
    """Gradient noise (S, S) in [-1, 1], zero at the corners of `cells` rows and columns of squares (Perlin, 2002)."""
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    lines = [(np.arange(size) + 0.5) * count / size for count in cells]
    corner = [line.astype(int) for line in lines]
    inside = [line - start for line, start in zip(lines, corner, strict=True)]
    fade = [part**3 * (6 * part**2 - 15 * part + 10) for part in inside]

    def slope(down: int, right: int) -> np.ndarray:
        angle = angles[np.ix_(corner[0] + down, corner[1] + right)]
        return np.sin(angle) * (inside[0] - down)[:, None] + np.cos(angle) * (inside[1] - right)

    rows = [slope(down, 0) * (1 - fade[1]) + slope(down, 1) * fade[1] for down in (0, 1)]
    return np.sqrt(2) * (rows[0] * (1 - fade[0])[:, None] + rows[1] * fade[0][:, None])


def _pasted(
    grid: Grid, painted: Painted, rng: Rng, centre: np.ndarray, inside: np.ndarray, other_colour: float
) -> np.ndarray:
    """The colours with a piece from elsewhere under `inside`; its channels are scaled by 1 +- `other_colour`."""
    points = [random_point(grid, painted, rng) for _ in range(8)]
    source = max(points, key=lambda point: min(float(np.hypot(*(point - centre))), FAR))
    x, y = grid.local((centre[0], centre[1]), rng.uniform(0, 2 * np.pi))
    piece = _sampled(grid, painted.colour, x + source[0], y + source[1])
    tones = 1 + other_colour * rng.choice([-1, 1]) * rng.uniform(0.5, 1.5, 3)
    return blend(painted.colour, np.clip(piece * tones, 0, 1), inside * painted.body)


def _structured_point(grid: Grid, painted: Painted, rng: Rng) -> np.ndarray:
    """Of several random points on the product the one with the most edges around it."""
    grey = gaussian_filter(painted.colour.mean(axis=-1), 0.01 * grid.size)
    edges = gaussian_filter(np.hypot(*np.gradient(grey)), 0.03 * grid.size)
    points = [random_point(grid, painted, rng) for _ in range(12)]
    return max(points, key=lambda point: edges[int((point[1] + 1) / grid.pixel), int((point[0] + 1) / grid.pixel)])


def _sampled(grid: Grid, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The colours (S, S, 3) at canvas coordinates, mirrored beyond the border."""
    at = np.stack([(y + 1) / grid.pixel - 0.5, (x + 1) / grid.pixel - 0.5])
    return np.stack([map_coordinates(colour[..., c], at, order=1, mode="mirror") for c in range(3)], axis=-1)


def _shuffled(colour: np.ndarray, rng: Rng) -> np.ndarray:
    """The picture with its tiles in another order; a rest at the right and lower border stays."""
    side = colour.shape[0] // TILES
    whole, order = side * TILES, rng.permutation(TILES * TILES)
    tiles = colour[:whole, :whole].reshape(TILES, side, TILES, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    mixed = colour.copy()
    mixed[:whole, :whole] = tiles[order].reshape(TILES, TILES, side, side, 3).swapaxes(1, 2).reshape(whole, whole, 3)
    return mixed
