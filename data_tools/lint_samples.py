"""Checks of one sample against the members of its shard."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_tools.conversion.rendition import XYZ_EXTENSION
from data_tools.near_duplicates import Fingerprints
from data_tools.remarks import SHALLOW, Remarks
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.images.codec import open_image, wastes_depth
from fmad_dist.images.masks import doubts_about, raw_mask
from fmad_dist.stream.dataset import Sample, Span


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar."""

    name: str
    offset: int  # of its first content byte
    data: bytes

    @property
    def span(self) -> Span:
        return Span.of(self.offset, self.data)


class ShardMembers:
    """The members of an uncompressed tar by name and by offset, and which of them a sample has claimed.

    Raises:
        tarfile.TarError: the bytes are no tar, or end inside a member.
    """

    def __init__(self, data: bytes) -> None:
        self.by_name: dict[str, Member] = {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                extracted = tar.extractfile(member)
                if extracted is None:
                    raise tarfile.TarError(f"member {member.name} is not a regular file")
                self.by_name[member.name] = Member(member.name, member.offset_data, extracted.read())
        self.by_offset = {member.offset: member for member in self.by_name.values()}
        self.claimed: set[str] = set()


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
        yield from form.problems(sample.image, sample.masks, members)
    if sample.original is not None or sample.original_masks:
        prefix = f"{key}." if foreign else f"{key}.original."
        form = _Form(prefix, sample.source_width, sample.source_height, resized=False)
        yield from form.problems(sample.original, sample.original_masks, members)
    with suppress(UserError):  # has been told
        prints.add(sample, _pixels(found))
    num_masks = len(sample.masks if sample.image else sample.original_masks)
    if bool(num_masks) != bool(sample.label):
        yield f"label {sample.label} with {num_masks} masks"
    if sample.image and len(sample.original_masks) not in (0, num_masks):
        yield f"{num_masks} resized masks of {len(sample.original_masks)} published ones"
    if len(sample.mask_ids) != num_masks:
        yield f"{num_masks} masks with ids for {len(sample.mask_ids)}"
    if sample.xyz is not None:
        what, shape = "point cloud of this image", (sample.height, sample.width, 3)
        check = partial(_cloud_problems, shape=shape)
        yield from _member_problems(sample.xyz, what, f"{key}.{XYZ_EXTENSION}", members, check)


def note_doubts(sample: Sample, members: ShardMembers, remarks: Remarks, ids_expected: bool) -> None:
    """Note what is doubtful about the pictures of a sample, published ones if they are stored; `ids_expected`: values
    of masks are ids. What cannot be read is an error of `check_sample`."""
    with suppress(UserError):
        for span in sample.original_masks or sample.masks:
            member = members.by_offset.get(span.offset)
            if member is not None:
                raw = raw_mask(member.data, member.name)
                for doubt in doubts_about(member.data, raw, ids_expected):
                    remarks.add(doubt, member.name)
        picture = members.by_offset.get(sample.original.offset) if sample.original else None
        if picture is not None and wastes_depth(picture.data, open_image(picture.data, picture.name)):
            remarks.add(SHALLOW, picture.name)


def _member_problems(
    span: Span, what: str, prefix: str, members: ShardMembers, check: Callable[[Member], Iterator[str]]
) -> Iterator[str]:
    """Problems of the member that starts where the index says; `check` looks at its content."""
    member = members.by_offset.get(span.offset)
    if member is None or not member.name.startswith(prefix):
        yield f"no {what} starts at byte {span.offset}"
        return
    members.claimed.add(member.name)
    if member.span != span:
        yield f"{member.name}: its bytes differ from the index"
    try:
        yield from (f"{member.name}: {problem}" for problem in check(member))
    except UserError as error:
        yield str(error)  # an image that cannot be decoded; it names the member


@dataclass(frozen=True, slots=True)
class _Form:
    """One rendition of a sample: what the names of its members start with, and its size in pixels."""

    prefix: str
    width: int
    height: int
    resized: bool

    def problems(self, image: Span | None, masks: tuple[Span, ...], members: ShardMembers) -> Iterator[str]:
        if image is not None:
            yield from _member_problems(image, f"image {self.prefix}*", self.prefix, members, self._image_problems)
        for mask in masks:
            yield from _member_problems(mask, "mask of this image", self.prefix, members, self._mask_problems)

    def _image_problems(self, member: Member) -> Iterator[str]:
        pixels = _pixels(member)
        if pixels.shape[:2] != (self.height, self.width) or (self.resized and pixels.shape[2:] != (3,)):
            kind = " RGB" if self.resized else ""
            yield f"pixels {pixels.shape}, the index states {self.width}x{self.height}{kind}"

    def _mask_problems(self, member: Member) -> Iterator[str]:
        pixels = _pixels(member)
        if pixels.shape[:2] != (self.height, self.width) or (self.resized and pixels.ndim != 2):
            yield f"pixels {pixels.shape}, the index states {self.width}x{self.height} grey"
        elif self.resized and not set(np.unique(pixels)) <= {0, 255}:
            yield "holds other values than 0 and 255"
        elif not pixels.any():
            yield "is empty"


def _cloud_problems(member: Member, shape: tuple[int, int, int]) -> Iterator[str]:
    try:
        points = np.load(io.BytesIO(member.data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        yield f"not an npy array ({first_line(error)})"
        return
    if points.shape != shape or points.dtype != np.float32:
        yield f"{points.dtype} {points.shape}, expected float32 {shape}"


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


def _pixels(member: Member) -> np.ndarray:
    return np.asarray(open_image(member.data, member.name))
