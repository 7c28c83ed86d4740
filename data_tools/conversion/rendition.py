"""From source files to what is stored: RGB 8-bit PNGs and 0/255 PNG masks of one size, the published bytes, or both.

Pixels are taken as stored (EXIF rotation is ignored, because masks are drawn on the stored grid). Images are squeezed
with an antialiased Lanczos filter. A mask is `raw != 0` on the undecoded values (palette indices, not colours),
resized to the nearest pixel; if that would lose the whole defect, the cell of each of its pixels is set instead.

Organised point clouds are TIFF files of float32 (H, W, 3) beside an image of the same height and width. Coordinates are
never averaged: points are taken from the source pixel under the centre of each stored cell, the same that masks use,
and keep their float32 bits. (0, 0, 0) marks a missing point and stays exactly that.
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_tools.readers.source_tree import MaskMeaning, SourceImage
from data_tools.remarks import POOLED, SHALLOW, Remarks
from fmad_dist.base.errors import Problems, UserError, first_line
from fmad_dist.base.process import end_with_starter
from fmad_dist.images.codec import decoding, open_image, png, square_rgb, wastes_depth
from fmad_dist.images.masks import MASK_RESAMPLE, cell_centres, doubts_about, marked_pixels, raw_mask, resize_mask
from fmad_dist.stream.manifest import Rendition

IMAGE_RESAMPLE = "lanczos, antialiased, 8 bit"
XYZ_RESAMPLE = "float32, nearest"
ORIGINAL = "original"
XYZ_EXTENSION = "xyz.npy"
_FACTS = ("sample_id", "class_name", "split", "label", "defect_type", "source", "group", "view")
_IN_FLIGHT_PER_WORKER = 4
RenditionName = Literal["resized", "original", "both"]


def stored_form(size: int | None, original: bool) -> Rendition:
    """What is stored of every image: a rendition of `size` pixels per side (None: none), published bytes, or both."""
    return Rendition(size=size, original=original, image_resample=IMAGE_RESAMPLE, mask_resample=MASK_RESAMPLE)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is stored of one image."""

    files: dict[str, bytes]  # by extension, in the order of the tar
    row: dict[str, Any]  # its index row, without where the files lie
    remarks: Remarks


def render(image: SourceImage, form: Rendition) -> Rendered:
    """Decode one image with its masks and its point cloud, and resize and encode what is to be stored.

    Files are `png` and the masks of the resized rendition, the same below `original.` as published, the point cloud,
    and `json` with what the sample is.

    Raises:
        UserError: a file cannot be decoded, a mask has another size than its image, is empty or holds unknown ids.
    """
    data = read_bytes(image.image)
    decoded = open_image(data, image.image)
    published = [read_bytes(path) for path in image.masks]
    remarks = Remarks()
    if wastes_depth(data, decoded):
        remarks.add(SHALLOW, str(image.image))
    masks, ids = [], []
    for path, content in zip(image.masks, published, strict=True):
        mask, found = _checked_mask(image, path, content, decoded.size, remarks)
        ids.append(found)
        if form.size is not None:
            masks.append(_resized_mask(mask, form.size, path, remarks))
    files: dict[str, bytes] = {}
    if form.size is not None:
        files["png"] = _image_bytes(data, decoded, image.image, form.size)
        files |= _named("", [".png"] * len(masks), masks)
    suffixes = [path.suffix.lower() for path in (image.image, *image.masks)]
    if form.original:
        files[f"{ORIGINAL}{suffixes[0]}"] = data
    if form.keeps_masks(image.mask_meaning.semantics):
        files |= _named(f"{ORIGINAL}.", suffixes[1:], published)
    if image.xyz:
        files[XYZ_EXTENSION] = resized_xyz(read_bytes(image.xyz), image.xyz, form.size)
    facts = {name: getattr(image, name) for name in _FACTS} | {"mask_ids": ids}
    files["json"] = json.dumps(facts | {"dataset": image.folder.dataset}, sort_keys=True).encode()
    row = facts | {
        "key": image.key,
        "width": form.size or decoded.width,
        "height": form.size or decoded.height,
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "source_width": decoded.width,
        "source_height": decoded.height,
    }
    return Rendered(files, row, remarks)


def _checked_mask(
    image: SourceImage, path: Path, content: bytes, size: tuple[int, int], remarks: Remarks
) -> tuple[np.ndarray, tuple[int, ...]]:
    """What a mask of an image of `size` (width, height) marks, bool (H, W), and the ids in it. Raises UserError."""
    raw = raw_mask(content, path)
    mask = marked_pixels(raw)
    check_size(path, (mask.shape[1], mask.shape[0]), size, "mask")
    if not mask.any():
        raise UserError(f"{path}: the mask is empty but {image.source} is anomalous; redraw it or remove both.")
    ids = defect_ids(raw, image.mask_meaning, path)
    for doubt in doubts_about(content, raw, ids_expected=image.mask_meaning.semantics != "binary"):
        remarks.add(doubt, str(path))
    return mask, ids


def _resized_mask(mask: np.ndarray, size: int, path: Path, remarks: Remarks) -> bytes:
    """The PNG of a mask bool (H, W), 0 and 255, at `size` pixels per side."""
    small, was_pooled = resize_mask(mask, size)
    if was_pooled:
        remarks.add(POOLED, str(path))
    return png(Image.fromarray(small.astype(np.uint8) * 255))


def render_in_order(images: Iterable[SourceImage], form: Rendition, num_workers: int) -> Iterator[Rendered]:
    """Rendered images in the order given, a bounded number in flight; one worker means this process.

    Raises:
        UserError: images are bad, and all others have been looked at; or a worker died.
    """
    with Problems() as problems:
        for result in _results(images, form, num_workers):
            if isinstance(result, UserError):
                problems.found.append(result)
            elif not problems.found:  # else what comes is not stored
                yield result


def _try_render(image: SourceImage, form: Rendition) -> Rendered | UserError:
    try:
        return render(image, form)
    except UserError as problem:
        return problem


def _results(images: Iterable[SourceImage], form: Rendition, num_workers: int) -> Iterator[Rendered | UserError]:
    if num_workers <= 1:
        for image in images:
            yield _try_render(image, form)
        return
    # Not fork: the parent may hold threads of a storage client, whose locks a forked child would inherit.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_starter) as pool:
        waiting: deque[Future[Rendered | UserError]] = deque()
        try:
            for image in images:
                if len(waiting) == num_workers * _IN_FLIGHT_PER_WORKER:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(_try_render, image, form))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"--workers {num_workers}: a worker process was killed, probably for lack of memory; use fewer."
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check the file and its permissions.") from None


def check_size(path: Path, found: tuple[int, int], image: tuple[int, int], what: str) -> None:
    """Refuse a mask or point cloud (`what`) whose (width, height) is not that of its image (UserError)."""
    if found != image:
        raise UserError(
            f"{path}: the {what} is {found[0]}x{found[1]} but its image is {image[0]}x{image[1]}; "
            f"export the {what} in the image's size."
        )


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


def _named(prefix: str, suffixes: list[str], masks: list[bytes]) -> dict[str, bytes]:
    """Masks by extension: `mask.png` for a single one; `mask.0.png`, `mask.1.png`, ... for several."""
    numbers = [""] if len(masks) == 1 else [f".{number}" for number in range(len(masks))]
    names = (f"{prefix}mask{number}{suffix}" for number, suffix in zip(numbers, suffixes, strict=True))
    return dict(zip(names, masks, strict=True))


def _image_bytes(data: bytes, image: Image.Image, path: Path, size: int) -> bytes:
    if image.size == (size, size) and _is_rgb8_png(data):
        return data
    return png(square_rgb(image, size, path))


def _is_rgb8_png(data: bytes) -> bool:
    """Whether the header chunk says bit depth 8 and colour type 2 (truecolour without alpha)."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] == b"\x08\x02"


def xyz_size(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height) from the headers of a TIFF file.

    Raises:
        UserError: it is no TIFF, or not of three float32 values per pixel.
    """
    import tifffile

    with decoding(path), tifffile.TiffFile(io.BytesIO(data)) as file:
        shape, kind = file.pages.first.shape, file.pages.first.dtype
    if len(shape) != 3 or shape[2] != 3 or kind != np.float32:
        raise UserError(
            f"{path}: {kind} {shape}, not float32 (height, width, 3); export x, y, z as the benchmark does."
        )
    return shape[1], shape[0]


def resized_xyz(data: bytes, path: Path, size: int | None) -> bytes:
    """An npy file of float32 (size, size, 3), or of its own height and width if `size` is None.

    Raises:
        UserError: the file cannot be decoded.
    """
    import tifffile

    with decoding(path):
        points = tifffile.imread(io.BytesIO(data))  # (H, W, 3)
    if size is not None:
        height, width = points.shape[:2]
        points = points[np.ix_(cell_centres(height, size), cell_centres(width, size))]
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(points, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
