"""Pictures as a browser shows them: photographs in a form it knows, thumbnails, and heat to lay over both."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fmad_dist.images import open_image, to_rgb
from fmad_dist.prediction.pictures import heat_colours

THUMBNAIL = 192  # longest side, px
SMALL_HEAT = 96
CACHE_BYTES = 64 << 20
DECODERS = 4  # images that are decoded at the same time, which bounds memory
_SHOWN_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "BMP": "image/bmp"}
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")

_decoding = threading.BoundedSemaphore(DECODERS)


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture and its media type."""

    data: bytes
    kind: str


def as_shown(data: bytes, where: str) -> Picture:
    """The file itself where a browser shows it as the detector sees it, else a PNG of 8-bit RGB.

    Raises:
        UserError: it is no image.
    """
    with _decoding:
        image = open_image(data, where)
        kind = _SHOWN_AS_THEY_ARE.get(image.format or "")
        if kind is not None and image.mode in _EIGHT_BIT:
            return Picture(data, kind)
        return _encoded(to_rgb(image, where), "PNG")


def thumbnail(data: bytes, where: str) -> Picture:
    """A JPEG of at most THUMBNAIL px.

    Raises:
        UserError: it is no image.
    """
    with _decoding:
        image = open_image(data, where)
        if image.mode not in _EIGHT_BIT:
            image = to_rgb(image, where)
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX if image.mode == "P" else Image.Resampling.LANCZOS)
        return _encoded(to_rgb(image, where), "JPEG", quality=85)


def heat(levels: np.ndarray, side: int | None = None) -> Picture:
    """A map on the normalised scale as a PNG that is transparent where nothing is hot, at most `side` px."""
    if side is not None:
        small = Image.fromarray(levels)
        small.thumbnail((side, side), Image.Resampling.BOX)
        levels = np.asarray(small)
    return _encoded(Image.fromarray((heat_colours(levels) * 255.0).round().astype(np.uint8)), "PNG")


def _encoded(image: Image.Image, form: str, **options: object) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Picture(buffer.getvalue(), f"image/{form.lower()}")


class Cache:
    """The pictures that were asked for last, up to `limit` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.num_bytes = 0
        self._kept: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], Picture]) -> Picture:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # not under the lock; that two requests may make the same is cheaper than waiting
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self.num_bytes += len(made.data)
            while self.num_bytes > self.limit:
                _, dropped = self._kept.popitem(last=False)
                self.num_bytes -= len(dropped.data)
        return made
