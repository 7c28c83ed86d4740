"""The report's images: the photograph with the outline of its mask beside the same photograph under its heat map."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fmad_dist.images.codec import encoded
from fmad_dist.metrics.panels import HIGHEST, LOWEST, Panel, PanelBoard

HEAT_LEVELS = 48  # palette size of a heat map
HEAT_ALPHA = 0.85  # opacity of the hottest level
GROUPS = (
    ("Defects with the highest scores", 1, HIGHEST),
    ("Defects with the lowest scores", 1, LOWEST),
    ("Normal images with the highest scores", 0, HIGHEST),
    ("Normal images with the lowest scores", 0, LOWEST),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One panel ready to draw; `image` and `heat` are data URIs, `outline` is SVG path data in image pixels."""

    panel: Panel
    width: int
    height: int
    image: str
    heat: str
    outline: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """The tiles of one class by heading; all heat maps run from `low` (transparent) to `high` (hottest) in score
    units."""

    groups: dict[str, list[Tile]]
    low: float
    high: float

    @property
    def num_bytes(self) -> int:
        """Of the pictures, as they stand in a page."""
        return sum(len(tile.image) + len(tile.heat) for tiles in self.groups.values() for tile in tiles)


def gallery(board: PanelBoard) -> Gallery:
    """All panels of a class; a panel of a small class that is in two lists is shown in the first only."""
    low, high = heat_range(board.panels.values())
    shown: set[str] = set()
    groups = {}
    for title, label, sign in GROUPS:
        fresh = [panel for panel in board.extremes(label, sign) if panel.row.sample_id not in shown]
        shown |= {panel.row.sample_id for panel in fresh}
        if fresh:
            groups[title] = [_tile(panel, low, high) for panel in fresh]
    return Gallery(groups, low, high)


def heat_range(panels: Iterable[Panel]) -> tuple[float, float]:
    """The median pixel of the normal maps and the median peak of the defects' maps, or of the maps there are."""
    maps: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for panel in panels:
        maps[panel.row.label].append(panel.anomaly_map)
    low = np.median([np.median(anomaly_map) for anomaly_map in maps[0] or maps[1]])
    high = np.median([anomaly_map.max() for anomaly_map in maps[1] or maps[0]])
    return float(low), float(high)


def _tile(panel: Panel, low: float, high: float) -> Tile:
    width, height = Image.open(io.BytesIO(panel.image)).size
    heat = _uri("png", _heat_png(panel.anomaly_map, low, high))
    return Tile(panel, width, height, _uri("jpeg", panel.image), heat, _outline(panel.mask, width, height))


def _heat_png(anomaly_map: np.ndarray, low: float, high: float) -> bytes:
    """A palette PNG whose colour and opacity rise with the score."""
    from matplotlib import colormaps

    span = high - low if high > low else 1.0
    share = np.clip((anomaly_map.astype(np.float64) - low) / span, 0, 1)
    image = Image.fromarray(np.round(share * (HEAT_LEVELS - 1)).astype(np.uint8))
    levels = np.linspace(0, 1, HEAT_LEVELS)
    colours = colormaps["inferno"](0.25 + 0.7 * levels)[:, :3]
    image.putpalette(np.round(colours * 255).astype(np.uint8).tobytes())
    alpha = np.round(255 * HEAT_ALPHA * np.minimum(1, 1.6 * levels)).astype(np.uint8)
    return encoded(image, "PNG", transparency=alpha.tobytes(), optimize=True)


def _outline(mask_png: bytes, width: int, height: int) -> str:
    """The borders of the mask's regions as closed SVG paths, in pixels of the image."""
    from contourpy import contour_generator  # comes with matplotlib

    mask = np.asarray(Image.open(io.BytesIO(mask_png)), dtype=np.float64)
    scale = np.array([width / mask.shape[1], height / mask.shape[0]])
    paths = []
    for line in contour_generator(z=np.pad(mask, 1)).lines(0.5):
        points = (np.asarray(line) - 0.5) * scale  # one pixel of padding, pixel centres at + 0.5
        paths.append("M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points.tolist()) + "Z")
    return "".join(paths)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
