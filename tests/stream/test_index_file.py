"""A large index is mapped from one file per machine: the same rows, not held by any process, refused when damaged."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.stream import index_file
from fmad_dist.stream.dataset import Dataset, load_dataset
from fmad_dist.stream.manifest import load_manifest
from fmad_dist.stream.mixture import Mixture, split_normals


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of mapped indexes, with every index above the limit and in parts of seven rows."""
    monkeypatch.setattr(index_file, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(index_file, "BATCH_ROWS", 7)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return index_file._folder()


def test_a_mapped_index_says_the_same(tiny_url: str, monkeypatch: pytest.MonkeyPatch, mapping: Path) -> None:
    mapped = load_dataset(tiny_url)
    monkeypatch.setattr(index_file, "IN_MEMORY_BYTES", 1 << 30)
    held = load_dataset(tiny_url)
    assert mapped.mapped
    assert not held.mapped
    assert mapped.table.equals(held.table)
    assert [mapped.sample(n) for n in range(len(held))] == [held.sample(n) for n in range(len(held))]
    assert [mapped.image_location(n) for n in range(len(held))] == [held.image_location(n) for n in range(len(held))]
    assert mapped.class_names.tolist() == held.class_names.tolist()
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(mapped.indices(split), held.indices(split))
    ours, theirs = (split_normals(Mixture((one,), np.array([0, len(one)])), 0.3) for one in (mapped, held))
    np.testing.assert_array_equal(ours.held_out, theirs.held_out)


def test_the_file_is_made_once_and_readers_map_it_again(tiny_url: str, mapping: Path) -> None:
    first = load_dataset(tiny_url)
    (path,) = mapping.glob("*.arrow")
    made = path.stat().st_ino
    data = pickle.dumps(Mixture((first,), np.array([0, len(first)])))
    assert first.sample_id(0).encode() not in data
    other = pickle.loads(data).datasets[0]
    assert other.table.equals(first.table)
    assert path.stat().st_ino == made
    assert list(mapping.glob("*.arrow")) == [path]


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_damaged_index_is_refused_and_leaves_no_file(own_copy: Path, mapping: Path, size: int) -> None:
    index = own_copy / load_manifest(str(own_copy)).index.name
    data = index.read_bytes()
    index.write_bytes(data[:size])
    with pytest.raises(UserError, match="truncated or changed"):
        load_dataset(str(own_copy))
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="truncated or changed"):
        load_dataset(str(own_copy))
    assert not [path for path in mapping.iterdir() if path.stat().st_size]


def test_a_folder_of_somebody_else_is_refused(tiny_url: str, mapping: Path) -> None:
    mapping.chmod(0o777)
    with pytest.raises(UserError, match="others may write to it"):
        load_dataset(tiny_url)


def test_a_dataset_on_its_way_carries_nothing_that_was_worked_out(tiny_url: str) -> None:
    dataset: Dataset = load_dataset(tiny_url)
    before = len(pickle.dumps(dataset))
    assert len(dataset.class_names) == len(dataset.labels)
    assert len(pickle.dumps(dataset)) == before
