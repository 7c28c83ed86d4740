"""What a conversion depends on, as one digest: the same digest means that there is nothing to do."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from data_tools.conversion.rendition import (
    IMAGE_RESAMPLE,
    XYZ_RESAMPLE,
    check_size,
    read_bytes,
    xyz_size,
)
from data_tools.readers.source_tree import SourceImage, SourceTree
from fmad_dist.base.errors import Problems, UserError
from fmad_dist.images.codec import image_size, is_turned_by_viewers, open_header
from fmad_dist.images.masks import MASK_RESAMPLE, has_alpha, is_lossy
from fmad_dist.stream.manifest import FORMAT, Rendition

_ENCODING = 2  # raise it when the same source would be stored as other bytes
_READ_ANEW = "pixels as stored, transparent and blurred ones no defect"
_READ_THREADS = 8


def digest_files(images: Sequence[SourceImage], advance: Callable[[], None]) -> list[list[str]]:
    """Read every source file once; `advance` is called after each image.

    Returns:
        Per image the SHA-256 of its file, of its point cloud ("" without one) and of each mask, as published.

    Raises:
        UserError: a file cannot be read or has no image header, or a mask or point cloud has another size than its
            image.
    """
    digests = []
    with ThreadPoolExecutor(_READ_THREADS) as pool, Problems() as problems:
        for found in pool.map(_digest_files_of, images):
            if isinstance(found, UserError):
                problems.found.append(found)
            else:
                digests.append(found)
            advance()
    return digests


def digest_head(tree: SourceTree, form: Rendition, shard_bytes: int) -> str:
    """Everything but the images that decides the bytes of a conversion, as one line."""
    head: list[object] = [FORMAT, _ENCODING, tree.folder.dataset, tree.layout, tree.licence, tree.note, tree.citation]
    head += [form.size, form.original, shard_bytes, tree.mask_semantics, IMAGE_RESAMPLE, MASK_RESAMPLE, XYZ_RESAMPLE]
    head.append({name: [rule.model_dump() for rule in rules] for name, rules in sorted(tree.saturation.items())})
    if form.keeps_masks(tree.mask_semantics) and not form.original:
        head.append("masks as published")
    return json.dumps(head, ensure_ascii=True)


def image_line(image: SourceImage, file_digests: Sequence[str]) -> str:
    """SHA-256 over everything about one image that decides its stored bytes and its row."""
    return _sha256([*_identity(image), *file_digests])


def source_digest(head: str, lines: Iterable[str]) -> str:
    """SHA-256 over the head and the lines of all images, sorted by sample id."""
    return _sha256([head, *lines])


def tree_digest(head: str, images: Iterable[SourceImage]) -> str:
    """SHA-256 over the head and the listing without the files' content: what all parts of a conversion must share."""
    return _sha256([head, *(_identity(image) for image in images)])


def _digest_files_of(image: SourceImage) -> list[str] | UserError:
    try:
        return _digests(image)
    except UserError as problem:
        return problem


def _digests(image: SourceImage) -> list[str]:
    data = read_bytes(image.image)
    size = image_size(data, image.image)
    xyz = b""
    if image.xyz:
        xyz = read_bytes(image.xyz)
        check_size(image.xyz, xyz_size(xyz, image.xyz), size, "point cloud")
    masks = [read_bytes(path) for path in image.masks]
    for path, mask in zip(image.masks, masks, strict=True):
        check_size(path, image_size(mask, path), size, "mask")
    digests = [hashlib.sha256(part).hexdigest() if part else "" for part in (data, xyz, *masks)]
    return [*digests, _READ_ANEW] if _is_read_anew(image, data, masks) else digests


def _is_read_anew(image: SourceImage, data: bytes, masks: Sequence[bytes]) -> bool:
    """Whether fmad 0.1 stored other pixels of these files: it turned TIFFs by their orientation tag, and took what is
    transparent, or blurred by compression, for defect. Only datasets with such files are made again."""
    picture = open_header(data, image.image)
    if picture.format == "TIFF" and is_turned_by_viewers(picture):
        return True
    return any(is_lossy(mask) or has_alpha(open_header(mask, image.image)) for mask in masks)


def _identity(image: SourceImage) -> list[object]:
    listed = [image.sample_id, image.split, image.label, image.defect_type, image.source, image.group, image.view]
    return [*listed, len(image.masks), image.xyz is not None]


def _sha256(values: Iterable[object]) -> str:
    total = hashlib.sha256()
    for value in values:
        total.update((json.dumps(value, ensure_ascii=True) + "\n").encode())
    return total.hexdigest()
