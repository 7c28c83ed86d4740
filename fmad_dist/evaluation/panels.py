"""The few images per class that a report shows: bounded, mergeable, chosen by score and sample id only."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

PANELS_PER_KIND = 3
IMAGE_SIZE = 256  # longest side of a stored image, px
MAP_SIZE = 128  # longest side of a stored map, px


@dataclass(frozen=True, slots=True)
class Panel:
    """One scored image, small: JPEG image, 1-bit PNG mask and a float32 map [h, w] in score units."""

    sample_id: str
    label: int
    defect_type: str
    score: float
    image: bytes
    mask: bytes
    anomaly_map: np.ndarray


class PanelBoard:
    """The candidates of one class: the highest and lowest scored defects and normal images, a few of each."""

    def __init__(self, panels: Iterable[Panel] = ()) -> None:
        self.panels: dict[str, Panel] = {panel.sample_id: panel for panel in panels}
        self._prune()

    def wants(self, sample_id: str, label: int, score: float) -> bool:
        """Whether this image would be kept; asked first because making a panel costs an encoding."""
        same = [(panel.score, panel.sample_id) for panel in self.panels.values() if panel.label == label]
        if len(same) < 2 * PANELS_PER_KIND:
            return True
        higher = sum((-other[0], other[1]) < (-score, sample_id) for other in same)
        lower = sum(other < (score, sample_id) for other in same)
        return min(higher, lower) < PANELS_PER_KIND

    def add(self, panel: Panel) -> None:
        self.panels[panel.sample_id] = panel
        self._prune()

    def merge(self, other: "PanelBoard") -> None:
        self.panels |= other.panels
        self._prune()

    def best(self) -> list[Panel]:
        """The defects with the highest scores."""
        return self._select(label=1, highest=True)

    def missed(self) -> list[Panel]:
        """The defects with the lowest scores."""
        return self._select(label=1, highest=False)

    def false_alarms(self) -> list[Panel]:
        """The normal images with the highest scores."""
        return self._select(label=0, highest=True)

    def calm(self) -> list[Panel]:
        """The normal images with the lowest scores."""
        return self._select(label=0, highest=False)

    def _select(self, label: int, highest: bool) -> list[Panel]:
        sign = -1.0 if highest else 1.0
        same = [panel for panel in self.panels.values() if panel.label == label]
        return sorted(same, key=lambda panel: (sign * panel.score, panel.sample_id))[:PANELS_PER_KIND]

    def _prune(self) -> None:
        kept = self.best() + self.missed() + self.false_alarms() + self.calm()
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
