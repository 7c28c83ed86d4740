"""What a conversion depends on, as one digest: the same digest means that there is nothing to do."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_tools.pointclouds import XYZ_RESAMPLE, xyz_size
from data_tools.readers.source import SourceImage, SourceTree
from data_tools.rendition import IMAGE_RESAMPLE, check_mask_size, header_size, read_bytes
from fmad_dist.masks import MASK_RESAMPLE
from fmad_dist.stream.manifest import FORMAT

_ENCODING = 1  # raise it when the same source would be stored as other bytes
_READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class FileDigests:
    """SHA-256 of an image file, of its mask files and of its point cloud, as published."""

    image: str
    masks: tuple[str, ...]
    xyz: str = ""


def digest_files(images: tuple[SourceImage, ...], advance: Callable[[], None]) -> list[FileDigests]:
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


def source_digest(tree: SourceTree, digests: list[FileDigests], *, size: int, shard_bytes: int) -> str:
    """SHA-256 over everything that decides the bytes of a conversion."""
    head: list[object] = [FORMAT, _ENCODING, tree.dataset, tree.layout, tree.licence, tree.note, size, shard_bytes]
    head += [tree.citation, tree.mask_semantics, IMAGE_RESAMPLE, MASK_RESAMPLE, XYZ_RESAMPLE]
    saturation = {name: [rule.model_dump() for rule in rules] for name, rules in sorted(tree.saturation.items())}
    total = hashlib.sha256(_line([*head, saturation]))
    for image, found in zip(tree.images, digests, strict=True):
        row: list[object] = [
            image.sample_id,
            image.split,
            image.label,
            image.defect_type,
            image.source,
            image.group,
            image.view,
            found.image,
            found.xyz,
            *found.masks,
        ]
        total.update(_line(row))
    return total.hexdigest()


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


def _line(values: list[object]) -> bytes:
    return (json.dumps(values, ensure_ascii=True) + "\n").encode()
