"""The few images per class that a report shows: mergeable, chosen by score and sample id only.

A protocol may make the score of an image of its score and the sum of its map, rising with both, in proportions that
are known only when all images of a dataset were scored. So an image stays until PANELS_PER_KIND others come before it
in both, whatever the proportions. Where the score is final at once that leaves twelve of a class; else about ten times
the logarithm of the number of images, more only where sums fall as scores rise.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fmad_dist.evaluation.results import ScoreRow

HIGHEST, LOWEST = -1.0, 1.0  # signs by which sorted scores start with the highest or the lowest
PANELS_PER_KIND = 3
IMAGE_SIZE = 256  # longest side of a stored image, px
MAP_SIZE = 128  # longest side of a stored map, px


@dataclass(frozen=True, slots=True)
class Panel:
    """One scored image, small: JPEG image, 1-bit PNG mask and a float32 map [h, w] in score units; `map_sum` as in
    ScoreRow."""

    sample_id: str
    label: int
    defect_type: str
    score: float
    map_sum: float
    image: bytes
    mask: bytes
    anomaly_map: np.ndarray


class PanelBoard:
    """The candidates of one class: what may be among the PANELS_PER_KIND highest or lowest scored defects or normal
    images."""

    def __init__(self, panels: Iterable[Panel] = ()) -> None:
        self.panels: dict[str, Panel] = {panel.sample_id: panel for panel in panels}
        self._prune()

    def wants(self, image: ScoreRow | Panel) -> bool:
        """Whether this image would be kept; asked first because making a panel costs an encoding."""
        return any(self._num_before(image, sign) < PANELS_PER_KIND for sign in (HIGHEST, LOWEST))

    def final(self, scores: Mapping[str, float]) -> "PanelBoard":
        """The board of a whole class with the final scores of its images, by sample id."""
        return PanelBoard(replace(p, score=scores[p.sample_id], map_sum=0.0) for p in self.panels.values())

    def add(self, panel: Panel) -> None:
        self.panels[panel.sample_id] = panel
        self._prune()

    def merge(self, other: "PanelBoard") -> None:
        self.panels |= other.panels
        self._prune()

    def best(self) -> list[Panel]:
        """The defects with the highest scores."""
        return self._select(label=1, sign=HIGHEST)

    def missed(self) -> list[Panel]:
        """The defects with the lowest scores."""
        return self._select(label=1, sign=LOWEST)

    def false_alarms(self) -> list[Panel]:
        """The normal images with the highest scores."""
        return self._select(label=0, sign=HIGHEST)

    def calm(self) -> list[Panel]:
        """The normal images with the lowest scores."""
        return self._select(label=0, sign=LOWEST)

    def _select(self, label: int, sign: float) -> list[Panel]:
        same = [panel for panel in self.panels.values() if panel.label == label]
        return sorted(same, key=lambda panel: (sign * panel.score, panel.sample_id))[:PANELS_PER_KIND]

    def _num_before(self, image: ScoreRow | Panel, sign: float) -> int:
        """How many panels with its label come before an image, whatever is made of scores and sums."""
        score, total = sign * image.score, sign * image.map_sum
        place = (score, total, image.sample_id)
        return sum(
            other.label == image.label
            and sign * other.score <= score
            and sign * other.map_sum <= total
            and (sign * other.score, sign * other.map_sum, other.sample_id) < place
            for other in self.panels.values()
        )

    def _prune(self) -> None:
        kept = [panel for panel in self.panels.values() if self.wants(panel)]
        self.panels = {panel.sample_id: panel for panel in sorted(kept, key=lambda panel: panel.sample_id)}


def encode_image(image: np.ndarray) -> bytes:
    """A uint8 image [H, W, 3] as JPEG of at most IMAGE_SIZE px."""
    return _encoded(
        _shrunk(Image.fromarray(image), IMAGE_SIZE, Image.Resampling.BOX), "JPEG", quality=90, subsampling=0
    )


def encode_mask(mask: np.ndarray) -> bytes:
    """A bool mask [H, W] as PNG of at most IMAGE_SIZE px."""
    small = _shrunk(Image.fromarray(mask.astype(np.uint8) * 255), IMAGE_SIZE, Image.Resampling.NEAREST)
    return _encoded(small.convert("1"), "PNG", optimize=True)


def small_map(anomaly_map: np.ndarray) -> np.ndarray:
    """A float32 map [H, W] averaged down to at most MAP_SIZE px; float32 because float16 would overflow at 65504."""
    return np.asarray(_shrunk(Image.fromarray(anomaly_map), MAP_SIZE, Image.Resampling.BOX), dtype=np.float32)


def _shrunk(image: Image.Image, longest: int, resample: Image.Resampling) -> Image.Image:
    ratio = longest / max(image.size)
    if ratio >= 1:
        return image
    width, height = (max(1, round(side * ratio)) for side in image.size)
    return image.resize((width, height), resample)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
