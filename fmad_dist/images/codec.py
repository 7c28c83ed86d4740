"""Decoding and resizing of input images: the one way, used when shards are made and when images are predicted.

Pixels are taken as stored: an orientation tag is ignored in every format, because masks are drawn on the stored grid;
what is shown to a person must be turned as little. Of TIFF files with
several pages and of MPO the first picture counts; animations are refused, because nobody said which frame is the
product. Colours of CMYK and YCCK are converted without profiles. 16-bit colours keep their high byte (Pillow).
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fmad_dist.base.errors import UserError, first_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")  # of others, EPS starts a program to decode
ORIENTATION = ExifTags.Base.Orientation
# Pillow turns TIFFs, and no other format, by their orientation tag when they are decoded; this turns them back.
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SIDEWAYS = (5, 6, 7, 8)
_BITS_PER_SAMPLE = 258  # TIFF tag
MAX_PIXELS = 2**27  # 134 megapixels, 400 MB as RGB; FMAD_MAX_PIXELS replaces it

# what a strange file makes Pillow say is about nothing the user can change; a size above the limit is no warning
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def max_pixels() -> int:
    """Pixels an image may have, from FMAD_MAX_PIXELS where that is set; it must be a positive number (UserError)."""
    text = os.environ.get("FMAD_MAX_PIXELS", str(MAX_PIXELS))
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"FMAD_MAX_PIXELS: {text!r} is not a number of pixels, such as {MAX_PIXELS}.")
    return int(text)


def open_image(data: bytes, where: object) -> Image.Image:
    """The completely decoded image in its own mode, pixels as stored.

    Raises:
        UserError: what `image_size` refuses, or the bytes end too early.
    """
    image = open_header(data, where)
    with decoding(where):
        turn_back = _TURN_BACK.get(_orientation(image)) if image.format == "TIFF" else None
        image.load()
        if turn_back is None:
            return image
        form, image = image.format, image.transpose(turn_back)
        image.format = form
        return image


def image_size(data: bytes, where: object) -> tuple[int, int]:
    """Width and height as stored, before any pixel is decoded or has memory.

    Raises:
        UserError: the bytes are no image, are animated or have more than `max_pixels()` pixels; the sentence names
            `where`.
    """
    image = open_header(data, where)
    with decoding(where):
        turned = image.format == "TIFF" and _orientation(image) in _SIDEWAYS
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where nothing is noted. Only the header of the file is read."""
    return int(image.getexif().get(ORIENTATION, 1))


def is_turned_by_viewers(image: Image.Image) -> bool:
    """Whether a browser would show the file of this image other than its pixels are stored."""
    with suppress(Exception):  # damaged notes of a camera, which nobody can follow
        return _orientation(image) != 1
    return False


def open_header(data: bytes, where: object) -> Image.Image:
    """The image with its mode, not decoded; refuses what `image_size` does."""
    limit = max_pixels()
    Image.MAX_IMAGE_PIXELS = limit  # Pillow looks at it in places that are not seen from here
    with decoding(where):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(where, limit) from None
        if image.width * image.height > limit:
            raise _too_large(where, limit)
        if image.format in ("PNG", "GIF", "WEBP") and getattr(image, "is_animated", False):
            raise UserError(f"{where}: is animated; save the frame that is to be inspected as an image of its own.")
    return image


def _too_large(where: object, limit: int) -> UserError:
    return UserError(
        f"{where}: has more than {limit / 1e6:.0f} megapixels; make it smaller, or set FMAD_MAX_PIXELS to more."
    )


def to_rgb(image: Image.Image, where: object) -> Image.Image:
    """8-bit RGB. 16-bit greys keep their full range (value / 257), so exposure stays comparable between images."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{where}: pixel values outside 16 bit; save it as an 8- or 16-bit image.")
        rounded = (values.astype(np.uint32) + 128) // 257
        return Image.fromarray(rounded.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{where}: floating-point pixels have no known range; save it as an 8- or 16-bit image.")
    with decoding(where):  # not every mode has a way to RGB
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")


def wastes_depth(data: bytes, image: Image.Image) -> bool:
    """Whether a file of 16 bits holds no value above 12 bits, so that `to_rgb` leaves at most 17 levels of it.

    Cameras of 10 and 12 bits are often saved like that. `image` is the decoded file of bytes `data`.
    """
    deep_colours = (image.format == "PNG" and data[24] == 16) or (
        image.format == "TIFF" and 16 in getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    )
    if image.mode.startswith("I"):
        return 0 < int(np.asarray(image).max()) < 4096
    return deep_colours and 0 < int(np.asarray(image).max()) < 16  # Pillow keeps the high byte of colours


def square_rgb(image: Image.Image, size: int, where: object) -> Image.Image:
    """8-bit RGB squeezed to size x size with an antialiased Lanczos filter."""
    rgb = to_rgb(image, where)
    return rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.LANCZOS)


@contextmanager
def decoding(where: object) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged bytes into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(f"{where}: cannot be decoded as an image ({said}); it may be truncated, replace it.") from error


def level_png(levels: np.ndarray) -> bytes:
    """A 16-bit grey PNG of a map on the normalised scale [H, W], 32768 = the threshold; 0 where there is no level."""
    grey = np.nan_to_num(np.clip(levels.astype(np.float64) * 65536.0, 0.0, 65535.0)).astype(np.uint16)
    return png(Image.fromarray(grey))


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file; nothing is lost."""
    return encoded(image, "PNG", compress_level=6)  # stated, so that a shard has the same bytes for ever


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file of a format that Pillow knows."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
