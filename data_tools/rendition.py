"""From source files to the stored rendition: RGB 8-bit PNG of one size, and 0/255 PNG masks of the same size.

Pixels are taken as stored (EXIF rotation is ignored, because masks are drawn on the stored grid). Images are squeezed
with an antialiased Lanczos filter. A mask is `raw != 0` on the undecoded values (palette indices, not colours),
resized to the nearest pixel; if that would lose the whole defect, every cell that the defect touches is set instead.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.readers.source import SourceImage
from fmad_dist.errors import UserError, first_line
from fmad_dist.images import decoding, open_image, square_rgb

IMAGE_RESAMPLE = "lanczos, antialiased, 8 bit"
MASK_RESAMPLE = "raw != 0, nearest; max-pooling where nearest would be empty"
_ALPHA_MODES = {"LA", "PA", "RGBA", "La", "RGBa"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """The stored bytes of one image, and what is known about the files they came from."""

    image: bytes
    masks: tuple[bytes, ...]
    size: int  # pixels per side
    num_pooled: int  # masks that nearest resizing would have emptied
    source_sha256: str
    source_width: int
    source_height: int


def render(record: SourceImage, size: int) -> Rendered:
    """Decode, resize and encode one image and its masks.

    Raises:
        UserError: a file cannot be decoded, a mask has another size than its image or is empty.
    """
    data = read_bytes(record.image)
    image = open_image(data, record.image)
    masks, pooled = [], 0
    for path in record.masks:
        mask = binary_mask(read_bytes(path), path)  # (H, W) bool
        check_mask_size(path, (mask.shape[1], mask.shape[0]), image.size)
        if not mask.any():
            raise UserError(f"{path}: the mask is empty but {record.source} is anomalous; redraw it or remove both.")
        small, was_pooled = resize_mask(mask, size)
        masks.append(png_bytes(Image.fromarray(small.astype(np.uint8) * 255)))
        pooled += was_pooled
    return Rendered(
        image=_image_bytes(data, image, record.image, size),
        masks=tuple(masks),
        size=size,
        num_pooled=pooled,
        source_sha256=hashlib.sha256(data).hexdigest(),
        source_width=image.width,
        source_height=image.height,
    )


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check the file and its permissions.") from None


def header_size(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height) from the file's header, without decoding it."""
    with decoding(path), Image.open(io.BytesIO(data)) as image:
        return image.size


def check_mask_size(path: Path, mask: tuple[int, int], image: tuple[int, int]) -> None:
    """Raises:
    UserError: (width, height) of the mask and of its image differ.
    """
    if mask != image:
        raise UserError(
            f"{path}: the mask is {mask[0]}x{mask[1]} but its image is {image[0]}x{image[1]}; "
            "export the mask in the image's size."
        )


def binary_mask(data: bytes, path: Path) -> np.ndarray:
    """Bool array (H, W): where any stored channel but alpha is not zero."""
    image = open_image(data, path)
    raw = np.asarray(image)  # (H, W) or (H, W, C)
    if image.mode in _ALPHA_MODES:
        raw = raw[..., :-1]
    marked = raw != 0
    return marked if marked.ndim == 2 else marked.any(axis=-1)


def resize_mask(mask: np.ndarray, size: int) -> tuple[np.ndarray, bool]:
    """Bool (size, size) from bool (H, W), and whether max-pooling was needed to keep the defect."""
    if mask.shape == (size, size):
        return mask, False
    height, width = mask.shape
    nearest = mask[np.ix_(_centres(height, size), _centres(width, size))]
    if nearest.any() or not mask.any():
        return nearest, False
    return _pool(_pool(mask, size).T, size).T, True


def _centres(num_source: int, size: int) -> np.ndarray:
    """Source index under the centre of each of `size` cells."""
    return ((2 * np.arange(size) + 1) * num_source) // (2 * size)


def _pool(mask: np.ndarray, size: int) -> np.ndarray:
    """Shrink axis 0 to `size` cells: a cell is set if any of its source rows is. Enlarges to the nearest row."""
    num_rows = mask.shape[0]
    if num_rows <= size:
        return mask[_centres(num_rows, size)]
    return np.logical_or.reduceat(mask, (np.arange(size) * num_rows) // size, axis=0)


def _image_bytes(data: bytes, image: Image.Image, path: Path, size: int) -> bytes:
    if image.size == (size, size) and _is_rgb8_png(data):
        return data
    return png_bytes(square_rgb(image, size, path))


def _is_rgb8_png(data: bytes) -> bool:
    """Whether the header chunk says bit depth 8 and colour type 2 (truecolour without alpha)."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] == b"\x08\x02"


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
