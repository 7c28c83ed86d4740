"""Encode pictures for a browser: photographs in a format it shows, thumbnails, and heat maps to lay over both."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fmad_dist.images.codec import encoded, is_turned_by_viewers, open_image, to_rgb
from fmad_dist.prediction.results import heat_colours

THUMBNAIL = 192  # longest side, px
SMALL_HEAT = 96
CACHE_BYTES = 64 << 20
DECODERS = 4  # images that are decoded at the same time, which bounds memory
_BROWSER_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "BMP": "image/bmp",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")

_decoding = threading.BoundedSemaphore(DECODERS)


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture and its media type."""

    data: bytes
    kind: str


def as_shown(data: bytes, where: str) -> Picture:
    """Return the file itself where a browser shows the pixels that the detector sees, else a PNG of 8-bit RGB.

    Raises:
        UserError: it is no image.
    """
    with _decoding:
        image = open_image(data, where)
        kind = _BROWSER_TYPES.get(image.format or "")
        if kind is not None and image.mode in _EIGHT_BIT and not is_turned_by_viewers(image):
            return Picture(data, kind)
        return _encoded(to_rgb(image, where), "PNG")


def thumbnail(data: bytes, where: str) -> Picture:
    """Return a JPEG of at most THUMBNAIL px.

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
    """Return a map on the normalised scale as a PNG, transparent where nothing is hot, of at most `side` px."""
    if side is not None:
        small = Image.fromarray(levels)
        small.thumbnail((side, side), Image.Resampling.BOX)
        levels = np.asarray(small)
    return _encoded(Image.fromarray((heat_colours(levels) * 255.0).round().astype(np.uint8)), "PNG")


def _encoded(image: Image.Image, form: str, **options: object) -> Picture:
    return Picture(encoded(image, form, **options), f"image/{form.lower()}")


class Cache:
    """Keeps the pictures that were asked for last, up to `limit` bytes."""

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
