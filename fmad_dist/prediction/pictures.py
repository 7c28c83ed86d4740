"""Heat maps and overlays of scored images, as files."""

from enum import StrEnum

import numpy as np
from PIL import Image

from fmad_dist.images import level_png, png
from fmad_dist.storage import Store
from fmad_dist.storage.behind import WriteBehind

MAPS, OVERLAYS = "maps", "overlays"
COLD, HOT = 0.4, 0.9  # levels where heat begins to be seen and where it is hottest; 0.5 is the threshold


class Pictures(StrEnum):
    """Of which images pictures are written."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"


class PictureFiles:
    """Writes `maps/<image>.png`, 16-bit grey, and `overlays/<image>.png` below `out`, in threads beside the scoring.

    Every method raises UserError when the storage refuses, also for an earlier file.
    """

    def __init__(self, out: str, wanted: Pictures) -> None:
        self.store = Store(out)
        self.wanted = wanted
        self._writes = WriteBehind()

    def add(self, name: str, pixels: np.ndarray, levels: np.ndarray, anomalous: bool) -> None:
        """`pixels` uint8 [S, S, 3]; `levels` float32 [M, M], the map on the normalised scale."""
        if self.wanted is Pictures.NONE or (self.wanted is Pictures.ANOMALOUS and not anomalous):
            return
        self._writes.put(lambda: self._write(name, pixels, levels))

    def wait(self) -> None:
        """Until everything that was added is stored."""
        self._writes.wait()

    def _write(self, name: str, pixels: np.ndarray, levels: np.ndarray) -> None:
        self.store.write(f"{MAPS}/{name}.png", level_png(levels))
        self.store.write(f"{OVERLAYS}/{name}.png", png(overlay(pixels, levels)))


def overlay(pixels: np.ndarray, levels: np.ndarray) -> Image.Image:
    """The image [S, S, 3] under the heat of its map [M, M]."""
    size = pixels.shape[0]
    heat = np.asarray(Image.fromarray(levels.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    coloured = heat_colours(heat)
    alpha = coloured[..., 3:]
    return Image.fromarray((pixels * (1 - alpha) + coloured[..., :3] * 255.0 * alpha).round().astype(np.uint8))


def heat_colours(levels: np.ndarray) -> np.ndarray:
    """RGBA in [0, 1], [M, M, 4], of a map on the normalised scale; transparent up to COLD, and where it is NaN."""
    from matplotlib import colormaps

    heat = np.nan_to_num(np.clip((levels - COLD) / (HOT - COLD), 0.0, 1.0))
    colours = colormaps["inferno"](heat)
    colours[..., 3] = 0.75 * np.sqrt(heat)
    return colours
