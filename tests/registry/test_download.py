"""A downloaded detector is the stored one, or nothing is written. The registry itself is in test_register.py."""

import json
from pathlib import Path

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.detector import Detector
from fmad_dist.registry.download import download


@pytest.fixture
def stored(tmp_path: Path, tiny_detector: Detector) -> Path:
    tiny_detector.save(tmp_path / "stored")
    (tmp_path / "stored" / "lineage.json").write_text("{}")
    return tmp_path / "stored"


def test_the_files_are_those_that_were_stored(stored: Path, tmp_path: Path) -> None:
    spec = download(str(stored), tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {path.name for path in stored.iterdir()}
    for path in stored.iterdir():
        assert (tmp_path / "here" / path.name).read_bytes() == path.read_bytes()
    assert Detector.load(tmp_path / "here").spec == spec


def test_changed_files_are_refused_before_anything_is_written(stored: Path, tmp_path: Path) -> None:
    weights = stored / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors: changed after it was written"):
        download(str(stored), tmp_path / "here")
    body = json.loads((stored / "detector.json").read_text())
    (stored / "detector.json").write_text(json.dumps(body | {"train_step": 7}))
    with pytest.raises(UserError, match=r"detector\.json: changed after it was written"):
        download(str(stored), tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_with_files_is_replaced_only_when_asked(stored: Path, tmp_path: Path, tiny_detector: Detector) -> None:
    other = tiny_detector.with_scorer(tiny_detector.spec.scorer)
    with torch.no_grad():
        other.class_means += 1.0
    other.save(tmp_path / "here")
    before = (tmp_path / "here" / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="here: not empty; choose another --out, or give --overwrite"):
        download(str(stored), tmp_path / "here")
    assert (tmp_path / "here" / "weights.safetensors").read_bytes() == before
    download(str(stored), tmp_path / "here", overwrite=True)
    assert (tmp_path / "here" / "weights.safetensors").read_bytes() == (stored / "weights.safetensors").read_bytes()
