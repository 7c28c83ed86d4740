"""What a conversion depends on, as one digest: the same digest means that there is nothing to do."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_tools.pointclouds import XYZ_RESAMPLE, xyz_size
from data_tools.readers.source import SourceImage, SourceTree
from data_tools.rendition import IMAGE_RESAMPLE, StoredForm, check_mask_size, header_size, read_bytes
from fmad_dist.masks import MASK_RESAMPLE
from fmad_dist.stream.manifest import FORMAT

_ENCODING = 2  # raise it when the same source would be stored as other bytes
_READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class FileDigests:
    """SHA-256 of an image file, of its mask files and of its point cloud, as published."""

    image: str
    masks: tuple[str, ...]
    xyz: str = ""


def digest_files(images: Sequence[SourceImage], advance: Callable[[], None]) -> list[FileDigests]:
    """Read every source file once; `advance` is called after each image.

    Raises:
        UserError: a file cannot be read or has no image header, or a mask or point cloud has another size than its
            image.
    """
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        digests = []
        for found in pool.map(_digest_one, images):
            digests.append(found)
            advance()
        return digests


def digest_head(tree: SourceTree, form: StoredForm, shard_bytes: int) -> str:
    """Everything but the images that decides the bytes of a conversion, as one line."""
    head: list[object] = [FORMAT, _ENCODING, tree.dataset, tree.layout, tree.licence, tree.note, tree.citation]
    head += [form.size, form.original, shard_bytes, tree.mask_semantics, IMAGE_RESAMPLE, MASK_RESAMPLE, XYZ_RESAMPLE]
    saturation = {name: [rule.model_dump() for rule in rules] for name, rules in sorted(tree.saturation.items())}
    head.append(saturation)
    if form.keeps_masks(tree.mask_semantics) and not form.original:
        head.append("masks as published")
    return json.dumps(head, ensure_ascii=True)


def image_line(image: SourceImage, found: FileDigests) -> str:
    """SHA-256 over everything about one image that decides its stored bytes and its row."""
    return _sha256([*_identity(image), found.image, found.xyz, *found.masks])


def source_digest(head: str, lines: Iterable[str]) -> str:
    """SHA-256 over the head and the lines of all images, sorted by sample id."""
    return _sha256([head, *lines])


def tree_digest(head: str, images: Iterable[SourceImage]) -> str:
    """SHA-256 over the head and the listing without the files' content: what all parts of a conversion must share."""
    return _sha256([head, *(_identity(image) for image in images)])


def _digest_one(record: SourceImage) -> FileDigests:
    data = read_bytes(record.image)
    size = header_size(data, record.image)
    masks = []
    for path in record.masks:
        mask = read_bytes(path)
        check_mask_size(path, header_size(mask, path), size)
        masks.append(hashlib.sha256(mask).hexdigest())
    xyz = ""
    if record.xyz:
        points = read_bytes(record.xyz)
        check_mask_size(record.xyz, xyz_size(points, record.xyz), size, "point cloud")
        xyz = hashlib.sha256(points).hexdigest()
    return FileDigests(hashlib.sha256(data).hexdigest(), tuple(masks), xyz)


def _identity(image: SourceImage) -> list[object]:
    place = [image.sample_id, image.split, image.label, image.defect_type, image.source, image.group, image.view]
    return [*place, len(image.masks), image.xyz is not None]


def _sha256(values: Iterable[object]) -> str:
    total = hashlib.sha256()
    for value in values:
        total.update((json.dumps(value, ensure_ascii=True) + "\n").encode())
    return total.hexdigest()
