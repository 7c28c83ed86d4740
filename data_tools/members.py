"""The files of one sample inside a shard, and where they lie in it."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from data_tools.readers.source import SourceImage
from data_tools.rendition import Rendered
from fmad_dist.stream.manifest import Span


def mask_extensions(num_masks: int) -> list[str]:
    """`mask.png` for a single mask; `mask.0.png`, `mask.1.png`, ... for several."""
    return ["mask.png"] if num_masks == 1 else [f"mask.{number}.png" for number in range(num_masks)]


XYZ_EXTENSION = "xyz.npy"


def sample_members(dataset: str, record: SourceImage, rendered: Rendered) -> dict[str, bytes]:
    """The files of one sample by extension: `png`, the masks, the point cloud, and `json` with what the sample is."""
    facts = {
        "sample_id": record.sample_id,
        "dataset": dataset,
        "class_name": record.class_name,
        "split": record.split,
        "label": record.label,
        "defect_type": record.defect_type,
        "source": record.source,
        "group": record.group,
        "view": record.view,
        "mask_ids": rendered.mask_ids,
    }
    xyz = {} if rendered.xyz is None else {XYZ_EXTENSION: rendered.xyz}
    masks = zip(mask_extensions(len(rendered.masks)), rendered.masks, strict=True)
    return {"png": rendered.image, **dict(masks), **xyz, "json": json.dumps(facts, sort_keys=True).encode()}


def index_row(record: SourceImage, rendered: Rendered) -> dict[str, object]:
    """The index row of a sample, still without the place of its bytes."""
    return {
        "sample_id": record.sample_id,
        "class_name": record.class_name,
        "split": record.split,
        "label": record.label,
        "defect_type": record.defect_type,
        "key": record.key,
        "width": rendered.size,
        "height": rendered.size,
        "source": record.source,
        "source_sha256": rendered.source_sha256,
        "source_width": rendered.source_width,
        "source_height": rendered.source_height,
        "mask_ids": rendered.mask_ids,
        "group": record.group,
        "view": record.view,
    }


def read_members(stream: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """Name, offset of the content and content of every member of an uncompressed tar, in order.

    Raises:
        tarfile.TarError: the stream is no tar or ends inside a member.
    """
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            extracted = tar.extractfile(member)
            if extracted is None:
                raise tarfile.TarError(f"member {member.name} is not a regular file")
            yield member.name, member.offset_data, extracted.read()


def member_spans(stream: BinaryIO) -> dict[str, Span]:
    """Byte range and digest of every member of an uncompressed tar, by name."""
    return {
        name: Span(offset, len(data), hashlib.sha256(data).hexdigest()) for name, offset, data in read_members(stream)
    }
