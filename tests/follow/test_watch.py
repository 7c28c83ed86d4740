"""What the follower sees of checkpoints that come, go, break and are written again while it looks."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.follow import watch as watch_module
from fmad_dist.follow.watch import Arrival, Ended, Watch
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.storage import Store
from fmad_dist.training.checkpoint import STATE_NAME, Checkpoint, Checkpoints, TrainState
from fmad_dist.training.checkpoint_reader import read_averages
from fmad_dist.training.checkpoint_writer import collect_parts, upload_parts

NETWORK = asdict(DiTSpec(channels=8, grid=4, width=32, depth=2, heads=2))
STATE = TrainState(0, 0, "p", NETWORK, ObjectiveConfig().model_dump(mode="json"), (0.5, 2.0), None, {"name": "x"}, 0)
FOREVER = 1e9


def write(checkpoints: Checkpoints, step: int, value: float = 1.0) -> Checkpoint:
    """A complete checkpoint; its averages are all `value` and lie in the second of its two files."""
    upload_parts(checkpoints, step, 0, [{"weight/a": torch.zeros(3)}, {"ema/a": torch.full((4,), value)}])
    checkpoints.publish(replace(STATE, step=step), collect_parts(checkpoints, step, 1))
    return checkpoints.read(step)


def watching(run: Path | str, known: Callable[[Checkpoint], bool] = lambda _: False, **options: object) -> Watch:
    return Watch(str(run), known, **({"once": False, "patience_s": FOREVER} | options))  # type: ignore[arg-type]


def step_of(found: object) -> int:
    assert isinstance(found, Arrival), found
    return found.checkpoint.state.step


def test_every_checkpoint_comes_once_and_in_order(run: Path, checkpoints: Checkpoints) -> None:
    watch = watching(run)
    assert watch.look() is None
    upload_parts(checkpoints, 10, 0, [{"ema/a": torch.ones(4)}])
    assert watch.look() is None  # not complete
    for step in (20, 10):
        write(checkpoints, step)
    assert step_of(watch.look()) == 10
    assert step_of(watch.look()) == 10  # not settled yet
    watch.settle(10)
    assert step_of(watch.look()) == 20
    watch.settle(20)
    assert watch.look() is None
    os.utime(checkpoints.folder(10).path(STATE_NAME), (1, 1))  # written again, after a rollback for example
    assert step_of(watch.look()) == 10


def test_what_is_known_does_not_come_again(run: Path, checkpoints: Checkpoints) -> None:
    first = write(checkpoints, 10)
    write(checkpoints, 20)
    watch = watching(run, lambda checkpoint: checkpoint.digest == first.digest and checkpoint.state.step == 10)
    assert step_of(watch.look()) == 20
    write(checkpoints, 10, value=2.0)  # other weights at the same step
    assert step_of(watching(run, lambda one: one.digest == first.digest).look()) == 10


@pytest.mark.parametrize("moment", ["before it is opened", "before its tensors are read", "between two files"])
def test_a_checkpoint_that_is_deleted_while_it_is_read_is_passed_over(
    run: Path, checkpoints: Checkpoints, moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(checkpoints, 10)
    write(checkpoints, 20)
    read = Store.read

    def read_too_late(self: Store, name: str) -> bytes:
        is_tensors = name.endswith("safetensors")
        if "step-00000010" in self.url and (is_tensors if moment == "between two files" else name == STATE_NAME):
            checkpoints.remove(10)
        return read(self, name)

    def averages_too_late(checkpoint: Checkpoint) -> dict:
        if checkpoint.state.step == 10:
            checkpoints.remove(10)
        return read_averages(checkpoint)

    if moment == "before its tensors are read":
        monkeypatch.setattr(watch_module, "read_averages", averages_too_late)
    else:
        monkeypatch.setattr(Store, "read", read_too_late)
    watch = watching(run)
    assert step_of(watch.look()) == 20
    assert "step 10: the training removed this checkpoint before it was read" in capsys.readouterr().err
    assert not watch.is_kept(10)
    assert watch.is_kept(20)


def test_weights_stay_when_the_checkpoint_goes(run: Path, checkpoints: Checkpoints) -> None:
    write(checkpoints, 10, value=7.0)
    found = watching(run).look()
    checkpoints.remove(10)
    assert isinstance(found, Arrival)
    assert found.averages["a"].tolist() == [7.0] * 4


def test_only_files_with_averages_are_read(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write(checkpoints, 10)
    names: list[str] = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, name: names.append(name) or read(self, name))
    assert set(read_averages(checkpoint)) == {"a"}
    assert names == ["tensors-00000-00001.safetensors"]


@pytest.mark.parametrize("harm", [lambda data: data[:-1] + b"x", lambda data: data[:20], lambda data: b"\xff" * 40])
def test_a_damaged_one_is_said_once_and_left_out(
    run: Path, checkpoints: Checkpoints, harm: Callable[[bytes], bytes], capsys: pytest.CaptureFixture
) -> None:
    write(checkpoints, 10)
    write(checkpoints, 20)
    path = Path(checkpoints.folder(10).path("tensors-00000-00001.safetensors"))
    path.write_bytes(harm(path.read_bytes()))
    watch = watching(run)
    assert step_of(watch.look()) == 20
    watch.settle(20)
    assert watch.look() is None
    assert capsys.readouterr().err.count(f"{path}: differs from its digest") == 1


def test_a_storage_that_is_away_is_waited_for(
    run: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(checkpoints, 10)
    read = Store.read

    def away(self: Store, name: str) -> bytes:
        raise UserError(f"{self.url_of(name)}: the storage does not answer.")

    monkeypatch.setattr(Store, "read", away)
    watch = watching(run)
    assert watch.look() is None
    assert watch.look() is None
    assert capsys.readouterr().err.count("does not answer. Waiting for it.") == 1
    with pytest.raises(UserError, match="does not answer"):
        watching(run, once=True).look()
    monkeypatch.setattr(Store, "read", read)
    assert step_of(watch.look()) == 10


def test_it_ends_with_the_training_and_not_before_the_detector(
    run: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 30)
    watch = watching(run)
    assert step_of(watch.look()) == 30
    watch.settle(30)
    assert watch.look() is None
    monkeypatch.setattr(watch_module, "what_lacks", lambda run, config: None)
    assert watch.look() == Ended("the training is complete")


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    watch = watching(tmp_path / "later")
    assert watch.look() is None
    assert "later: there is no such run yet" in capsys.readouterr().err
    (tmp_path / "later").mkdir()
    assert watch.look() is None  # training has begun to set up
    assert isinstance(watching(tmp_path / "later", patience_s=0.0).look(), Ended)


def test_patience_and_once_end_it(run: Path, checkpoints: Checkpoints) -> None:
    write(checkpoints, 10)
    for options in ({"patience_s": 0.0}, {"once": True}):
        watch = watching(run, **options)
        assert step_of(watch.look()) == 10
        watch.settle(10)
        assert isinstance(watch.look(), Ended)


def test_checkpoints_at_a_url_of_their_own(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/checkpoints"
    checkpoints = Checkpoints(url)
    write(checkpoints, 10)
    watch = watching(url)
    assert step_of(watch.look()) == 10
    watch.settle(10)
    assert watch.look() is None
