"""Checks of one sample against the members of its shard."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.members import XYZ_EXTENSION
from data_tools.near_duplicates import Fingerprints
from fmad_dist.errors import UserError, first_line
from fmad_dist.images import open_image
from fmad_dist.stream.dataset import Sample, Span


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


def check_sample(sample: Sample, members: ShardMembers, prints: Fingerprints, foreign: bool = False) -> Iterator[str]:
    """Problems of one sample, whose members are claimed and whose fingerprint is taken.

    Members are found by where the index says they start, then compared by size and digest. Samples of foreign tars have
    names of their own and need no facts beside them.
    """
    first = sample.image or sample.original
    found = members.by_offset.get(first.offset) if first else None
    if found is None:
        yield f"no image starts at byte {first.offset}" if first else "the index names no image"
        return
    stem = found.name.rpartition("/")[2].partition(".")[0]
    key = f"{found.name.rpartition('/')[0]}/{stem}".lstrip("/")
    members.claimed.add(f"{key}.json")
    if not foreign:
        yield from _check_facts(sample, members.by_name.get(f"{key}.json"))
    if sample.image is not None:
        form = _Form(f"{key}.", sample.width, sample.height, resized=True)
        yield from _check_form(sample.image, sample.masks, form, members)
    if sample.original is not None or sample.original_masks:
        prefix = f"{key}." if foreign else f"{key}.original."
        form = _Form(prefix, sample.source_width, sample.source_height, resized=False)
        yield from _check_form(sample.original, sample.original_masks, form, members)
    pixels = _decoded(found)
    if not isinstance(pixels, str):
        prints.add(sample, pixels)
    num_masks = len(sample.masks if sample.image else sample.original_masks)
    if bool(num_masks) != bool(sample.label):
        yield f"label {sample.label} with {num_masks} masks"
    if sample.image and len(sample.original_masks) not in (0, num_masks):
        yield f"{num_masks} resized masks of {len(sample.original_masks)} published ones"
    if len(sample.mask_ids) != num_masks:
        yield f"{num_masks} masks with ids for {len(sample.mask_ids)}"
    yield from _check_xyz(sample, key, members)


@dataclass(frozen=True, slots=True)
class _Form:
    """One rendition of a sample: what the names of its members start with, and its size in pixels."""

    stem: str
    width: int
    height: int
    resized: bool


def _check_form(image: Span | None, masks: tuple[Span, ...], form: _Form, members: ShardMembers) -> Iterator[str]:
    if image is not None:
        yield from _check_image(image, form, members)
    for span in masks:
        mask = members.by_offset.get(span.offset)
        if mask is None or not mask.name.startswith(form.stem):
            yield f"no mask of this image starts at byte {span.offset}"
            continue
        members.claimed.add(mask.name)
        if mask.span != span:
            yield f"{mask.name}: its bytes differ from the index"
        yield from _check_mask(mask, form)


def _check_image(image: Span, form: _Form, members: ShardMembers) -> Iterator[str]:
    member = members.by_offset.get(image.offset)
    if member is None or not member.name.startswith(form.stem):
        yield f"no image {form.stem}* starts at byte {image.offset}"
        return
    members.claimed.add(member.name)
    if member.span != image:
        yield f"{member.name}: its bytes differ from the index"
    pixels = _decoded(member)
    if isinstance(pixels, str):
        yield pixels
    elif pixels.shape[:2] != (form.height, form.width) or (form.resized and pixels.shape[2:] != (3,)):
        kind = " RGB" if form.resized else ""
        yield f"{member.name}: pixels {pixels.shape}, the index states {form.width}x{form.height}{kind}"


def _check_mask(member: Member, form: _Form) -> Iterator[str]:
    pixels = _decoded(member)
    if isinstance(pixels, str):
        yield pixels
    elif pixels.shape[:2] != (form.height, form.width) or (form.resized and pixels.ndim != 2):
        yield f"{member.name}: pixels {pixels.shape}, the index states {form.width}x{form.height} grey"
    elif form.resized and not set(np.unique(pixels)) <= {0, 255}:
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
        return np.asarray(open_image(member.data, member.name))
    except UserError as error:
        return str(error)
