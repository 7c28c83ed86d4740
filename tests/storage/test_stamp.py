"""Stamps: what a folder was made from, and whether that can be believed."""

import json
from pathlib import Path

import pytest

from fmad_dist.storage import Store
from fmad_dist.storage.stamp import Stamp, changed_files, key_of, read_stamp, write_stamp

FACTS = {"Scorer": "inversion steps=2", "Tested on": "tiny, manifest 0123456789ab"}


@pytest.fixture
def store() -> Store:
    """A folder with two result files and their stamp; in memory, because it is written a thousand times."""
    store = Store("memory://test-stamp")
    for name in ("one.json", "two.csv"):
        store.write(name, name.encode())
    write_stamp(store, key_of({"facts": 1}), FACTS, ("one.json", "two.csv"))
    return store


def test_what_was_stamped_is_read(store: Store) -> None:
    found = read_stamp(store)
    assert found is not None
    assert (found.key, found.facts, list(found.files)) == (key_of({"facts": 1}), FACTS, ["one.json", "two.csv"])
    assert changed_files(store, found) == []
    store.write("one.json", b"changed")
    store.remove("two.csv")
    assert changed_files(store, found) == ["one.json", "two.csv"]


def test_a_stamp_that_is_damaged_anywhere_is_none(store: Store) -> None:
    whole = store.read("stamp.json")
    found = read_stamp(store)
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1
        store.write("stamp.json", bytes(data))
        assert read_stamp(store) in (None, found), position  # a blank between two fields means nothing
    for length in range(len(whole)):
        store.write("stamp.json", whole[:length])
        assert read_stamp(store) is None


def test_a_stamp_of_the_version_before_is_read(tmp_path: Path) -> None:
    """It has no digest of itself."""
    body = {"key": "0123456789abcdef", "facts": FACTS, "files": {}}
    Store(tmp_path).write("stamp.json", json.dumps(body, indent=1).encode())
    assert read_stamp(Store(tmp_path)) == Stamp(**body)
    assert read_stamp(Store(tmp_path / "nowhere")) is None
