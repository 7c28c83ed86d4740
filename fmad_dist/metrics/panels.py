"""The few images per class that a report shows: mergeable, chosen by score and sample id only.

A protocol may make the score of an image of its score and the sum of its map, rising with both, in proportions that
are known only when all images of a dataset were scored. So an image stays until PANELS_PER_KIND others come before it
in both, whatever the proportions. Where the score is final at once that leaves twelve of a class; else about ten times
the logarithm of the number of images, more only where sums fall as scores rise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fmad_dist.images.codec import encoded
from fmad_dist.metrics.results import ScoreRow

HIGHEST, LOWEST = -1.0, 1.0  # signs by which sorted scores start with the highest or the lowest
PANELS_PER_KIND = 3
IMAGE_SIZE = 256  # longest side of a stored image, px
MAP_SIZE = 128  # longest side of a stored map, px


@dataclass(frozen=True, slots=True)
class Panel:
    """One scored image, small: JPEG image, 1-bit PNG mask and a float32 map [h, w] in score units."""

    row: ScoreRow
    image: bytes
    mask: bytes
    anomaly_map: np.ndarray


class PanelBoard:
    """The candidates of one class: what may be among the PANELS_PER_KIND highest or lowest scored defects or normal
    images."""

    def __init__(self, panels: Iterable[Panel] = ()) -> None:
        self.panels: dict[str, Panel] = {panel.row.sample_id: panel for panel in panels}  # by sample id, in its order
        self._prune()

    def wants(self, row: ScoreRow) -> bool:
        """Whether this image would be kept; to be asked before its pictures are encoded for a panel."""
        return any(self._num_before(row, sign) < PANELS_PER_KIND for sign in (HIGHEST, LOWEST))

    def final(self, scores: Mapping[str, float]) -> "PanelBoard":
        """The board of a whole class with the final scores of its images, by sample id."""
        rows = {name: replace(p.row, score=scores[name], map_sum=0.0) for name, p in self.panels.items()}
        return PanelBoard(replace(panel, row=rows[name]) for name, panel in self.panels.items())

    def add(self, panel: Panel) -> None:
        """Add a panel, and drop those that can no longer be shown."""
        self.panels[panel.row.sample_id] = panel
        self._prune()

    def merge(self, other: "PanelBoard") -> None:
        """Add the panels of another part of the class."""
        self.panels |= other.panels
        self._prune()

    def extremes(self, label: int, sign: float) -> list[Panel]:
        """The PANELS_PER_KIND defects (label 1) or normal images (0) with the HIGHEST or LOWEST scores."""
        same = [panel for panel in self.panels.values() if panel.row.label == label]
        return sorted(same, key=lambda panel: (sign * panel.row.score, panel.row.sample_id))[:PANELS_PER_KIND]

    def _num_before(self, row: ScoreRow, sign: float) -> int:
        """How many panels of its label come before an image, in whatever proportion scores and sums are added."""

        def key(row: ScoreRow) -> tuple[float, float, str]:
            return sign * row.score, sign * row.map_sum, row.sample_id

        own = key(row)
        keys = [key(panel.row) for panel in self.panels.values() if panel.row.label == row.label]
        return sum(other[0] <= own[0] and other[1] <= own[1] and other < own for other in keys)

    def _prune(self) -> None:
        self.panels = {name: panel for name, panel in sorted(self.panels.items()) if self.wants(panel.row)}


def encode_image(image: np.ndarray) -> bytes:
    """A uint8 image [H, W, 3] as JPEG of at most IMAGE_SIZE px."""
    small = _shrunk(Image.fromarray(image), IMAGE_SIZE, Image.Resampling.BOX)
    return encoded(small, "JPEG", quality=90, subsampling=0)


def encode_mask(mask: np.ndarray) -> bytes:
    """A bool mask [H, W] as PNG of at most IMAGE_SIZE px."""
    small = _shrunk(Image.fromarray(mask.astype(np.uint8) * 255), IMAGE_SIZE, Image.Resampling.NEAREST)
    return encoded(small.convert("1"), "PNG", optimize=True)


def small_map(anomaly_map: np.ndarray) -> np.ndarray:
    """A float32 map [H, W] averaged down to at most MAP_SIZE px; float32 because float16 would overflow at 65504."""
    return np.asarray(_shrunk(Image.fromarray(anomaly_map), MAP_SIZE, Image.Resampling.BOX), dtype=np.float32)


def _shrunk(image: Image.Image, longest: int, resample: Image.Resampling) -> Image.Image:
    ratio = longest / max(image.size)
    if ratio >= 1:
        return image
    width, height = (max(1, round(side * ratio)) for side in image.size)
    return image.resize((width, height), resample)
