"""Drawing with distances: anti-aliased shapes, noise and blending on a square canvas.

Coordinates run from -1 to 1, x to the right and y down. Distances are negative inside a shape. Coverage is 1 inside,
0 outside, and linear over one pixel at the edge. Colours are float arrays (S, S, 3) in [0, 1].
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image

Colour = tuple[float, float, float]
Rng = np.random.Generator


@dataclass(frozen=True)
class Grid:
    """The pixel centres of a canvas with `size` pixels per side."""

    size: int

    @cached_property
    def x(self) -> np.ndarray:
        """Array (S, S)."""
        line = (np.arange(self.size) + 0.5) * 2 / self.size - 1
        return np.broadcast_to(line, (self.size, self.size))

    @cached_property
    def y(self) -> np.ndarray:
        """Array (S, S)."""
        return self.x.T

    @property
    def pixel(self) -> float:
        """Side of a pixel in canvas units."""
        return 2 / self.size

    def local(self, centre: tuple[float, float], angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (x, y) in a frame at `centre`, turned by `angle` radians."""
        x, y = self.x - centre[0], self.y - centre[1]
        cos, sin = np.cos(angle), np.sin(angle)
        return cos * x + sin * y, cos * y - sin * x

    def window(self, centre: tuple[float, float], half: tuple[float, float]) -> tuple[slice, slice]:
        """The rows and columns around `centre`, to paint a small part without touching the whole canvas."""
        low = [max(int((c - h + 1) / self.pixel), 0) for c, h in zip(centre, half, strict=True)]
        high = [min(int((c + h + 1) / self.pixel) + 1, self.size) for c, h in zip(centre, half, strict=True)]
        return slice(low[1], high[1]), slice(low[0], high[0])

    def coverage(self, distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
        """Coverage of the shape with this distance; the edge is `softness` pixels wide."""
        return np.clip(0.5 - distance / (self.pixel * softness), 0, 1)


def on_canvas(point: tuple[float, float], centre: tuple[float, float], angle: float) -> tuple[float, float]:
    """Canvas coordinates of a point in the frame of `Grid.local(centre, angle)`."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return centre[0] + cos * point[0] - sin * point[1], centre[1] + sin * point[0] + cos * point[1]


def circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to a circle around the origin."""
    return np.hypot(x, y) - radius


def box(x: np.ndarray, y: np.ndarray, half: tuple[float, float], corner: float = 0.0) -> np.ndarray:
    """Distance to a rectangle around the origin with rounded corners."""
    dx, dy = np.abs(x) - half[0] + corner, np.abs(y) - half[1] + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def segment(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance to the line between two points (2,)."""
    direction = end - start
    along = ((x - start[0]) * direction[0] + (y - start[1]) * direction[1]) / max(float(direction @ direction), 1e-12)
    along = np.clip(along, 0, 1)
    return np.hypot(x - start[0] - along * direction[0], y - start[1] - along * direction[1])


def polyline(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the line through points (n, 2), and the position in [0, 1] along it of the nearest part."""
    nearest = np.full(x.shape, np.inf)
    position = np.zeros(x.shape)
    for number, (start, end) in enumerate(pairwise(points)):
        distance = segment(x, y, start, end)
        closer = distance < nearest
        position[closer] = (number + 0.5) / (len(points) - 1)
        nearest = np.minimum(nearest, distance)
    return nearest, position


def smooth_noise(rng: Rng, size: int, cells: int) -> np.ndarray:
    """Array (S, S) of cubic noise with about `cells` bumps per side, mean 0 and deviation 1."""
    coarse = Image.fromarray(rng.standard_normal((cells + 2, cells + 2)).astype(np.float32))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=(1, 1, cells + 1, cells + 1)), float)
    return (fine - fine.mean()) / fine.std()


def blend(colour: np.ndarray, paint: np.ndarray | Colour, coverage: np.ndarray) -> np.ndarray:
    """`paint` over `colour`; pixels with coverage 0 keep their exact value."""
    return colour + coverage[..., None] * (np.asarray(paint) - colour)


def scale(colour: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Brightness (S, S) times colour; a factor of exactly 1 keeps the exact value."""
    return colour * factor[..., None]
