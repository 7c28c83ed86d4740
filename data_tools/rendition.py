"""From source files to what is stored: RGB 8-bit PNGs and 0/255 PNG masks of one size, the published bytes, or both.

Pixels are taken as stored (EXIF rotation is ignored, because masks are drawn on the stored grid). Images are squeezed
with an antialiased Lanczos filter. A mask is `raw != 0` on the undecoded values (palette indices, not colours),
resized to the nearest pixel; if that would lose the whole defect, the cell of each of its pixels is set instead.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_tools.pointclouds import resized_xyz
from data_tools.readers.source import MaskMeaning, SourceImage
from fmad_dist.errors import UserError, first_line
from fmad_dist.images import open_header, open_image, square_rgb
from fmad_dist.masks import marked_pixels, raw_mask, resize_mask
from fmad_dist.stream.manifest import MaskSemantics

IMAGE_RESAMPLE = "lanczos, antialiased, 8 bit"


RenditionName = Literal["resized", "original", "both"]


@dataclass(frozen=True, slots=True)
class StoredForm:
    """What is stored of every image: a rendition of `size` pixels per side (None: none), published bytes, or both."""

    size: int | None
    original: bool

    @classmethod
    def of(cls, name: RenditionName, size: int) -> "StoredForm":
        return cls(None if name == "original" else size, name != "resized")

    def keeps_masks(self, semantics: MaskSemantics) -> bool:
        """Whether masks are stored as published: beside original images, and always where each is a single defect,
        whose saturated overlap is measured at the size of the source (a few KB)."""
        return self.original or semantics == "channel"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The stored bytes of one image, and what is known about the files they came from."""

    image: bytes | None  # the resized rendition
    masks: tuple[bytes, ...]
    size: int | None  # pixels per side of the resized rendition
    num_pooled: int  # masks that nearest resizing would have emptied
    source_sha256: str
    source_width: int
    source_height: int
    mask_ids: tuple[tuple[int, ...], ...] = ()  # per mask the defect ids in the source
    original: bytes | None = None
    original_masks: tuple[bytes, ...] = ()
    xyz: bytes | None = None


def render(record: SourceImage, form: StoredForm) -> Rendered:
    """Decode one image with its masks and its point cloud, and resize and encode what is to be stored.

    Raises:
        UserError: a file cannot be decoded, a mask has another size than its image, is empty or holds unknown ids.
    """
    data = read_bytes(record.image)
    image = open_image(data, record.image)
    published = [read_bytes(path) for path in record.masks]
    masks, ids, pooled = [], [], 0
    for path, content in zip(record.masks, published, strict=True):
        raw = raw_mask(content, path)
        mask = marked_pixels(raw)  # (H, W) bool
        check_mask_size(path, (mask.shape[1], mask.shape[0]), image.size)
        if not mask.any():
            raise UserError(f"{path}: the mask is empty but {record.source} is anomalous; redraw it or remove both.")
        ids.append(defect_ids(raw, record.mask_meaning, path))
        if form.size is not None:
            small, was_pooled = resize_mask(mask, form.size)
            masks.append(png_bytes(Image.fromarray(small.astype(np.uint8) * 255)))
            pooled += was_pooled
    return Rendered(
        image=None if form.size is None else _image_bytes(data, image, record.image, form.size),
        masks=tuple(masks),
        size=form.size,
        num_pooled=pooled,
        source_sha256=hashlib.sha256(data).hexdigest(),
        source_width=image.width,
        source_height=image.height,
        mask_ids=tuple(ids),
        original=data if form.original else None,
        original_masks=tuple(published) if form.keeps_masks(record.mask_meaning.semantics) else (),
        xyz=resized_xyz(read_bytes(record.xyz), record.xyz, form.size) if record.xyz else None,
    )


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check the file and its permissions.") from None


def header_size(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height) from the file's header, without decoding it."""
    return open_header(data, path).size


def check_mask_size(path: Path, mask: tuple[int, int], image: tuple[int, int], what: str = "mask") -> None:
    """Raises:
    UserError: (width, height) of the mask, or of `what` else it is, and of its image differ.
    """
    if mask != image:
        raise UserError(
            f"{path}: the {what} is {mask[0]}x{mask[1]} but its image is {image[0]}x{image[1]}; "
            f"export the {what} in the image's size."
        )


def binary_mask(data: bytes, path: Path) -> np.ndarray:
    """Bool array (H, W): where any stored channel but alpha is not zero."""
    return marked_pixels(raw_mask(data, path))


def defect_ids(raw: np.ndarray, meaning: MaskMeaning, path: Path) -> tuple[int, ...]:
    """The ids in an undecoded mask (H, W), ascending; none if its values mean nothing.

    Raises:
        UserError: the mask is in colour, or holds ids that the meaning does not allow.
    """
    if meaning.semantics == "binary":
        return ()
    if raw.ndim != 2:
        raise UserError(f"{path}: a colour image, but its values are defect ids; save it with one channel.")
    ids = tuple(int(value) for value in np.unique(raw[raw != 0]))
    if meaning.semantics == "channel" and len(ids) != 1:
        raise UserError(f"{path}: holds the values {ids}, but is the mask of one defect; save one PNG per defect.")
    unknown = set(ids) - meaning.known_ids if meaning.known_ids else set()
    if unknown:
        known = ", ".join(map(str, sorted(meaning.known_ids)))
        raise UserError(f"{path}: defect id {min(unknown)} is not one of {known}; correct the mask or the list of ids.")
    return ids


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
