"""Many byte ranges at once."""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fmad_dist.storage.faults import code_of

MAX_GAP = 32 << 10  # bytes that may be read in vain to save a request
MAX_REQUEST = 8 << 20
CONCURRENT = 16


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes [start, stop) of an object."""

    name: str
    start: int
    stop: int


def read_ranges(fs: Any, path: Callable[[str], str], wanted: Sequence[ByteRange], is_local: bool) -> list[bytes]:
    """The bytes of every range, in the order given; shorter only where an object ends."""
    if is_local:
        return [_read_local(path(part.name), part) for part in wanted]
    requests = merge(wanted)
    answers = fs.cat_ranges(
        [path(part.name) for part in requests],
        [part.start for part in requests],
        [part.stop for part in requests],
        on_error="return",
        **({"batch_size": CONCURRENT} if getattr(fs, "async_impl", False) else {}),
    )
    content = [_content(answer) for answer in answers]
    return [_cut(part, requests, content) for part in wanted]


def merge(wanted: Sequence[ByteRange]) -> list[ByteRange]:
    """Sorted requests that cover all ranges: neighbours in one object become one, up to `MAX_REQUEST` bytes."""
    requests: list[ByteRange] = []
    for part in sorted(set(wanted)):
        last = requests[-1] if requests else None
        if (
            last is not None
            and last.name == part.name
            and part.start <= last.stop + MAX_GAP
            and max(part.stop, last.stop) - last.start <= MAX_REQUEST
        ):
            requests[-1] = ByteRange(last.name, last.start, max(last.stop, part.stop))
        else:
            requests.append(part)
    return requests


def _cut(part: ByteRange, requests: list[ByteRange], answers: list[bytes]) -> bytes:
    """A range out of the answer to the request that covers it."""
    number = bisect_right(requests, (part.name, part.start), key=lambda request: (request.name, request.start)) - 1
    while requests[number].stop < part.stop:  # of overlapping requests only an earlier one may reach far enough
        number -= 1
    offset = part.start - requests[number].start
    return answers[number][offset : offset + part.stop - part.start]


def _content(answer: bytes | Exception) -> bytes:
    """The bytes of an answer; none for a range behind the end of an object, which object stores refuse."""
    if not isinstance(answer, Exception):
        return bytes(answer)
    if code_of(answer) in ("InvalidRange", "416"):
        return b""
    raise answer


def _read_local(path: str, part: ByteRange) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), part.stop - part.start, part.start)
