import json
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.manifest import MANIFEST_NAME, load_manifest


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index_of(folder: Path) -> Path:
    return folder / load_manifest(str(folder)).index.name


def test_what_was_converted_is_read(tiny_url: str) -> None:
    dataset = load_dataset(tiny_url)
    assert dataset.name == "tiny"
    assert len(dataset) == 24 + 6
    assert dataset.sample_ids == sorted(dataset.sample_ids)
    assert len(dataset.indices("train")) == 24
    assert dataset.labels.sum() == 3
    bad = dataset.sample(dataset.sample_ids.index("tiny/nut/test/hole/000"))
    assert (bad.label, bad.defect_type, bad.class_name, bad.split) == (1, "hole", "nut", "test")
    assert (bad.width, bad.height, len(bad.masks)) == (64, 64, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"licence": "CC0, honestly"}, "edited"),
        ({"digest": "0" * 64}, "edited"),
        ({"format": "fmad-manifest/99"}, "fmad-manifest/99"),
        ({"classes": []}, "not a readable manifest"),
        ({"colour": "red"}, "not a readable manifest"),
    ],
)
def test_a_changed_manifest_is_refused(own_copy: Path, changes: dict[str, object], words: str) -> None:
    edit(own_copy, **changes)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset(str(own_copy))
    assert str(own_copy / MANIFEST_NAME) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "fmad-manifest/1"}'])
def test_a_damaged_manifest_is_refused(own_copy: Path, content: bytes) -> None:
    (own_copy / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: "):
        load_manifest(str(own_copy))


def test_every_digit_of_the_manifest_counts(own_copy: Path) -> None:
    path = own_copy / MANIFEST_NAME
    path.write_text(path.read_text().replace('"num_samples": 24', '"num_samples": 25'))
    with pytest.raises(UserError, match="edited"):
        load_manifest(str(own_copy))


def test_a_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fmad data convert"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_index_is_refused(own_copy: Path, keep: int) -> None:
    index = index_of(own_copy)
    index.write_bytes(index.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or changed") as caught:
        load_dataset(str(own_copy))
    assert index.name in str(caught.value)


def test_a_missing_index_is_refused(own_copy: Path) -> None:
    index = index_of(own_copy)
    index.unlink()
    with pytest.raises(UserError, match=index.name):
        load_dataset(str(own_copy))
