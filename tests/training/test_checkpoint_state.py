"""What a checkpoint folder must be to count, without an engine; saving and resuming are integration tests."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from fmad_dist.config import ObjectiveConfig
from fmad_dist.errors import UserError
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.training.checkpoint import (
    FORMAT,
    STATE_NAME,
    TrainState,
    _publish,
    _read_tensors,
    _remove_leftovers,
    _write_tensors,
    list_checkpoints,
    read_state,
)

NETWORK = DiTSpec(channels=8, grid=4, width=32, depth=2, heads=2)
PLAN = "p" * 64
OBJECTIVE = ObjectiveConfig()


def body(**changes: object) -> dict[str, Any]:
    state = TrainState(12, 12, PLAN, asdict(NETWORK), OBJECTIVE.model_dump(mode="json"), [0.5, 2.0], "abc")
    return {"format": FORMAT, **asdict(state), "files": {}} | changes


def make_checkpoint(folder: Path, content: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / STATE_NAME).write_text(json.dumps(body()) if content is None else content)
    return folder


def refusal(path: Path, network: DiTSpec = NETWORK, plan: str = PLAN) -> str:
    with pytest.raises(UserError) as caught:
        read_state(path, network, OBJECTIVE, plan)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (100, 20, 99_999_999):
        make_checkpoint(tmp_path / f"step-{step:08d}")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000100", "step-99999999"]


def test_unfinished_checkpoints_do_not_count(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / ".tmp-step-00000300")
    (tmp_path / "step-00000200").mkdir()
    (tmp_path / "step-00000200" / "tensors-00000.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("x")
    assert list_checkpoints(tmp_path) == []
    assert list_checkpoints(tmp_path / "missing") == []


def test_leftovers_are_removed_and_checkpoints_are_not(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / ".tmp-step-00000300")
    make_checkpoint(tmp_path / "step-00000200")
    _remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000200"]


def test_publishing_replaces_the_same_step(tmp_path: Path) -> None:
    old = make_checkpoint(tmp_path / "step-00000012", "old")
    _publish(make_checkpoint(tmp_path / ".tmp-step-00000012", "new"), old)
    assert (old / STATE_NAME).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]


def test_a_state_is_read_back(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "step-00000012")
    state = read_state(path, NETWORK, OBJECTIVE, PLAN)
    assert state == TrainState(12, 12, PLAN, asdict(NETWORK), OBJECTIVE.model_dump(mode="json"), (0.5, 2.0), "abc")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "step-00000012")
    message = refusal(path, DiTSpec(channels=8, grid=4, width=64, depth=2, heads=4))
    assert str(path) in message
    assert "heads 2, width 32" in message
    assert "heads 4, width 64" in message
    assert "depth" not in message


def test_another_sample_stream_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "step-00000012")
    message = refusal(path, plan="q" * 64)
    assert str(path) in message
    assert "train.seed" in message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '"text"',
        json.dumps({"format": FORMAT}),
        json.dumps(body(colour="red")),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    path = make_checkpoint(tmp_path / "step-00000012", content)
    assert f"{path / STATE_NAME}: not a readable checkpoint" in refusal(path)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of two tensor files and the tensors in it."""
    path = tmp_path / "step-00000012"
    path.mkdir()
    files: dict[str, str] = {}
    tensors = {"weight/a": torch.arange(6.0).view(2, 3), "ema/a": torch.ones(4), "exp_avg/a": torch.zeros(2)}
    for names in (["weight/a", "ema/a"], ["exp_avg/a"], []):
        _write_tensors(path, {name: tensors[name] for name in names}, files)
    assert len(files) == 2
    (path / STATE_NAME).write_text(json.dumps(body(files=files)))
    return path, tensors


def test_tensors_are_read_back(written: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = written
    found = dict(_read_tensors(path))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    ],
    ids=["missing", "truncated", "changed"],
)
def test_damaged_tensor_files_are_refused(
    written: tuple[Path, dict[str, torch.Tensor]], harm: Callable[[Path], object]
) -> None:
    path, _ = written
    victim = path / "tensors-00001.safetensors"
    harm(victim)
    with pytest.raises(UserError) as caught:
        list(_read_tensors(path))
    assert str(victim) in str(caught.value)
    assert str(path) in str(caught.value)
