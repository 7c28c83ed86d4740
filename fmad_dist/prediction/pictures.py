"""Heat maps and overlays of scored images, as files."""

import io
from enum import StrEnum

import numpy as np
from PIL import Image

from fmad_dist.storage import Store
from fmad_dist.storage.behind import WriteBehind

MAPS, OVERLAYS = "maps", "overlays"
THRESHOLD = 32768  # grey of the threshold in a heat map; twice the threshold and more is 65535


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

    def add(self, name: str, pixels: np.ndarray, relative: np.ndarray, anomalous: bool) -> None:
        """`pixels` uint8 [S, S, 3]; `relative` float32 [M, M], 1 = threshold."""
        if self.wanted is Pictures.NONE or (self.wanted is Pictures.ANOMALOUS and not anomalous):
            return
        self._writes.put(lambda: self._write(name, pixels, relative))

    def wait(self) -> None:
        """Until everything that was added is stored."""
        self._writes.wait()

    def _write(self, name: str, pixels: np.ndarray, relative: np.ndarray) -> None:
        self.store.write(f"{MAPS}/{name}.png", _png(heat_map(relative)))
        self.store.write(f"{OVERLAYS}/{name}.png", _png(overlay(pixels, relative)))


def heat_map(relative: np.ndarray) -> Image.Image:
    """16-bit grey [M, M] of a map whose threshold is 1."""
    return Image.fromarray(np.clip(relative * THRESHOLD, 0, 65535).astype(np.uint16))


def overlay(pixels: np.ndarray, relative: np.ndarray) -> Image.Image:
    """The image [S, S, 3] under the heat of `relative` [M, M]."""
    size = pixels.shape[0]
    heat = np.asarray(Image.fromarray(relative.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    coloured = heat_colours(heat)
    alpha = coloured[..., 3:]
    return Image.fromarray((pixels * (1 - alpha) + coloured[..., :3] * 255.0 * alpha).round().astype(np.uint8))


def heat_colours(relative: np.ndarray) -> np.ndarray:
    """RGBA in [0, 1], [M, M, 4]: transparent up to half the threshold, full colour from twice on."""
    from matplotlib import colormaps

    level = np.clip((relative - 0.5) / 1.5, 0.0, 1.0)
    colours = colormaps["inferno"](level)
    colours[..., 3] = 0.75 * np.sqrt(level)
    return colours


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
