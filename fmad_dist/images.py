"""Decoding and resizing of input images: the one way, used when shards are made and when images are predicted."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from fmad_dist.errors import UserError, first_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def open_image(data: bytes, where: object) -> Image.Image:
    """The completely decoded image in its own mode.

    Raises:
        UserError: the bytes are no image or end too early; the sentence names `where`.
    """
    with decoding(where):
        image = Image.open(io.BytesIO(data))
        image.load()
        return image


def to_rgb(image: Image.Image, where: object) -> Image.Image:
    """8-bit RGB. 16-bit greys keep their full range (value / 257), so exposure stays comparable between images."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{where}: pixel values outside 16 bit; save it as an 8- or 16-bit image.")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{where}: floating-point pixels have no known range; save it as an 8- or 16-bit image.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def square_rgb(image: Image.Image, size: int, where: object) -> Image.Image:
    """8-bit RGB squeezed to size x size with an antialiased Lanczos filter."""
    rgb = to_rgb(image, where)
    return rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.LANCZOS)


@contextmanager
def decoding(where: object) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged bytes into a `UserError` that names the file."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{where}: cannot be decoded as an image ({first_line(error)}); it may be truncated, replace it."
        ) from error
