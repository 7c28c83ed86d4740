"""The files of one sample inside a shard, and where they lie in it."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from data_tools.readers.source import SourceImage
from data_tools.records import LINE_COLUMN
from data_tools.rendition import Rendered
from fmad_dist.stream.dataset import Span

ORIGINAL = "original"
XYZ_EXTENSION = "xyz.npy"


def mask_extensions(suffixes: list[str]) -> list[str]:
    """`mask.png` for a single mask; `mask.0.png`, `mask.1.png`, ... for several."""
    if len(suffixes) == 1:
        return [f"mask{suffixes[0]}"]
    return [f"mask.{number}{suffix}" for number, suffix in enumerate(suffixes)]


def sample_members(dataset: str, record: SourceImage, rendered: Rendered) -> dict[str, bytes]:
    """The files of one sample by extension.

    `png` and the masks of the resized rendition, the same below `original.` as published, the point cloud, and `json`
    with what the sample is.
    """
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
    files: dict[str, bytes] = {}
    if rendered.image is not None:
        files["png"] = rendered.image
        files |= zip(mask_extensions([".png"] * len(rendered.masks)), rendered.masks, strict=True)
    if rendered.original is not None:
        files[f"{ORIGINAL}{record.image.suffix.lower()}"] = rendered.original
    if rendered.original_masks:
        names = mask_extensions([path.suffix.lower() for path in record.masks])
        files |= {f"{ORIGINAL}.{name}": data for name, data in zip(names, rendered.original_masks, strict=True)}
    if rendered.xyz is not None:
        files[XYZ_EXTENSION] = rendered.xyz
    return files | {"json": json.dumps(facts, sort_keys=True).encode()}


def index_row(record: SourceImage, rendered: Rendered, source_line: str) -> dict[str, object]:
    """The row of a sample, still without the place of its bytes."""
    return {
        "sample_id": record.sample_id,
        "class_name": record.class_name,
        "split": record.split,
        "label": record.label,
        "defect_type": record.defect_type,
        "key": record.key,
        "width": rendered.size or rendered.source_width,
        "height": rendered.size or rendered.source_height,
        "source": record.source,
        "source_sha256": rendered.source_sha256,
        "source_width": rendered.source_width,
        "source_height": rendered.source_height,
        "mask_ids": rendered.mask_ids,
        "group": record.group,
        "view": record.view,
        LINE_COLUMN: source_line,
    }


def place_members(row: dict[str, object], spans: dict[str, Span]) -> None:
    """Complete a row with the byte ranges that its files, by extension, have in the finished tar."""
    originals = {name.removeprefix(f"{ORIGINAL}."): s for name, s in spans.items() if name.startswith(f"{ORIGINAL}.")}
    _place(row, "image", spans.get("png"))
    _place(row, "original", next((span for name, span in originals.items() if not name.startswith("mask.")), None))
    _place(row, "xyz", spans.get(XYZ_EXTENSION))
    for column, found in (("mask", spans), ("original_mask", originals)):
        ordered = [found[name] for name in sorted(found, key=_mask_number) if name.startswith("mask.")]
        row[f"{column}_offset"] = [span.offset for span in ordered]
        row[f"{column}_size"] = [span.size for span in ordered]
        row[f"{column}_sha256"] = [span.sha256 for span in ordered]


def _place(row: dict[str, object], name: str, span: Span | None) -> None:
    if span is not None:
        row.update({f"{name}_offset": span.offset, f"{name}_size": span.size, f"{name}_sha256": span.sha256})


def _mask_number(name: str) -> int:
    """The number in `mask.3.png`; 0 for `mask.png`."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "mask" and len(parts) == 3 else 0


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


def member_spans(stream: BinaryIO) -> dict[str, dict[str, Span]]:
    """Byte range and digest of every member of an uncompressed tar, by key and extension."""
    spans: dict[str, dict[str, Span]] = {}
    for name, offset, data in read_members(stream):
        key, _, extension = name.partition(".")
        spans.setdefault(key, {})[extension] = Span(offset, len(data), hashlib.sha256(data).hexdigest())
    return spans
