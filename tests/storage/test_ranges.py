"""Many ranges in few requests, compared with slices."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.storage import Store
from fmad_dist.storage import ranges as ranges_module
from fmad_dist.storage.ranges import ByteRange, merge

CONTENT = {name: np.random.default_rng(n).bytes(5000) for n, name in enumerate("abc")}
RANGES = st.lists(
    st.builds(
        lambda name, start, size: ByteRange(name, start, start + size),
        st.sampled_from("abc"),
        st.integers(0, 5200),
        st.integers(0, 900),
    ),
    max_size=40,
)


@given(RANGES, st.sampled_from([0, 10, 400]), st.sampled_from([1, 500, 10**6]))
def test_any_ranges_are_the_slices(wanted: list[ByteRange], gap: int, most: int) -> None:
    """Also overlapping, repeated, empty and beyond the end, on an object store, for any way to merge them."""
    store = Store("memory://ranges")
    for name, content in CONTENT.items():
        store.write(name, content)
    before = ranges_module.MAX_GAP, ranges_module.MAX_REQUEST
    ranges_module.MAX_GAP, ranges_module.MAX_REQUEST = gap, most
    try:
        found = store.read_ranges(wanted)
        requests = merge(wanted)
    finally:
        ranges_module.MAX_GAP, ranges_module.MAX_REQUEST = before
    assert found == [CONTENT[part.name][part.start : part.stop] for part in wanted]
    assert len(requests) <= len(set(wanted))
    longest = max((part.stop - part.start for part in wanted), default=0)
    assert all(request.stop - request.start <= max(most, longest) for request in requests)


def test_local_ranges_are_the_slices(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a", CONTENT["a"])
    wanted = [ByteRange("a", 7, 19), ByteRange("a", 0, 3), ByteRange("a", 4990, 6000)]
    assert store.read_ranges(wanted) == [CONTENT["a"][7:19], CONTENT["a"][:3], CONTENT["a"][4990:]]


def test_neighbours_are_one_request() -> None:
    gap = ranges_module.MAX_GAP
    wanted = [ByteRange("a", 0, 10), ByteRange("a", 10 + gap, 20 + gap), ByteRange("a", 21 + 2 * gap, 30 + 2 * gap)]
    assert merge(wanted[::-1]) == [ByteRange("a", 0, 20 + gap), wanted[2]]
    assert merge([ByteRange("a", 0, 10), ByteRange("b", 10, 20)]) == [ByteRange("a", 0, 10), ByteRange("b", 10, 20)]


def test_nothing_is_asked_for_nothing(monkeypatch: Any) -> None:
    assert Store("memory://ranges").read_ranges([]) == []
