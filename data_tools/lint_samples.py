"""Checks of one sample against the members of its shard."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_tools.members import XYZ_EXTENSION
from fmad_dist.errors import first_line
from fmad_dist.stream.manifest import Sample, Span


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar."""

    name: str
    offset: int  # of its first content byte
    data: bytes

    @property
    def span(self) -> Span:
        return Span(self.offset, len(self.data), hashlib.sha256(self.data).hexdigest())


class ShardMembers:
    """The members of one tar by name and by offset, and which of them a sample has claimed."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.by_name = {member.name: member for member in members}
        self.by_offset = {member.offset: member for member in self.by_name.values()}
        self.claimed: set[str] = set()

    def unclaimed(self) -> list[str]:
        return sorted(self.by_name.keys() - self.claimed)


def check_sample(sample: Sample, members: ShardMembers) -> Iterator[str]:
    """Problems of one sample, whose members are claimed.

    Members are found by where the index says they start, then compared by size and digest.
    """
    image = members.by_offset.get(sample.image.offset)
    if image is None or not image.name.endswith(".png"):
        yield f"no image starts at byte {sample.image.offset}"
        return
    stem = image.name.removesuffix(".png")
    members.claimed.update({image.name, f"{stem}.json"})
    if image.span != sample.image:
        yield f"{image.name}: its bytes differ from the index"
    yield from _check_image(sample, image)
    yield from _check_facts(sample, members.by_name.get(f"{stem}.json"))
    if bool(sample.masks) != bool(sample.label):
        yield f"label {sample.label} with {len(sample.masks)} masks"
    if len(sample.mask_ids) != len(sample.masks):
        yield f"{len(sample.masks)} masks with ids for {len(sample.mask_ids)}"
    yield from _check_xyz(sample, stem, members)
    for span in sample.masks:
        mask = members.by_offset.get(span.offset)
        if mask is None or not mask.name.startswith(f"{stem}.mask."):
            yield f"no mask of this image starts at byte {span.offset}"
            continue
        members.claimed.add(mask.name)
        if mask.span != span:
            yield f"{mask.name}: its bytes differ from the index"
        yield from _check_mask(sample, mask)


def _check_image(sample: Sample, member: Member) -> Iterator[str]:
    pixels = _decoded(member)
    if isinstance(pixels, str):
        yield pixels
    elif pixels.shape != (sample.height, sample.width, 3):
        yield f"{member.name}: pixels {pixels.shape}, the index states {sample.width}x{sample.height} RGB"


def _check_mask(sample: Sample, member: Member) -> Iterator[str]:
    pixels = _decoded(member)
    if isinstance(pixels, str):
        yield pixels
    elif pixels.shape != (sample.height, sample.width):
        yield f"{member.name}: pixels {pixels.shape}, the index states {sample.width}x{sample.height} grey"
    elif not set(np.unique(pixels)) <= {0, 255}:
        yield f"{member.name}: holds other values than 0 and 255"
    elif not pixels.any():
        yield f"{member.name}: is empty"


def _check_xyz(sample: Sample, stem: str, members: ShardMembers) -> Iterator[str]:
    if sample.xyz is None:
        return
    member = members.by_offset.get(sample.xyz.offset)
    if member is None or member.name != f"{stem}.{XYZ_EXTENSION}":
        yield f"no point cloud of this image starts at byte {sample.xyz.offset}"
        return
    members.claimed.add(member.name)
    if member.span != sample.xyz:
        yield f"{member.name}: its bytes differ from the index"
    try:
        points = np.load(io.BytesIO(member.data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        yield f"{member.name}: not an npy array ({first_line(error)})"
        return
    if points.shape != (sample.height, sample.width, 3) or points.dtype != np.float32:
        yield f"{member.name}: {points.dtype} {points.shape}, expected float32 ({sample.height}, {sample.width}, 3)"


def _check_facts(sample: Sample, member: Member | None) -> Iterator[str]:
    if member is None:
        yield "its json member is missing"
        return
    try:
        facts = json.loads(member.data)
    except ValueError as error:
        yield f"{member.name}: not JSON ({first_line(error)})"
        return
    if facts.get("mask_ids") != [list(ids) for ids in sample.mask_ids]:
        yield f"{member.name}: mask_ids is {facts.get('mask_ids')!r}, the index states {sample.mask_ids!r}"
    for name in ("sample_id", "dataset", "class_name", "split", "label", "defect_type", "group", "view"):
        if facts.get(name) != getattr(sample, name):
            yield f"{member.name}: {name} is {facts.get(name)!r}, the index states {getattr(sample, name)!r}"


def _decoded(member: Member) -> np.ndarray | str:
    """The pixels, or what is wrong with the bytes."""
    try:
        with Image.open(io.BytesIO(member.data)) as image:
            return np.asarray(image)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return f"{member.name}: cannot be decoded ({first_line(error)})"
