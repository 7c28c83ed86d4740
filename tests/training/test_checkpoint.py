"""What a checkpoint folder must be to count, how it is written and read, and what damage does; without an engine."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.storage import Store
from fmad_dist.training import checkpoint_reader
from fmad_dist.training.checkpoint import (
    FORMAT,
    STATE_NAME,
    Checkpoint,
    Checkpoints,
    Damaged,
    TrainState,
    check_belongs,
)
from fmad_dist.training.checkpoint_reader import newest_usable, opened
from fmad_dist.training.checkpoint_writer import CheckpointWriter, collect_parts, in_parts, upload_parts
from tests.support.thread_world import on_ranks

NETWORK = DiTSpec(channels=8, grid=4, width=32, depth=2, heads=2)
PLAN = "p" * 64
OBJECTIVE = ObjectiveConfig()
CONFIG = {"name": "x", "train": {"global_batch": 8}}
STATE = TrainState(12, 12, PLAN, asdict(NETWORK), OBJECTIVE.model_dump(mode="json"), (0.5, 2.0), "abc", CONFIG, 96)
TENSORS = {"weight/a": torch.arange(6.0).view(2, 3), "ema/a": torch.ones(4), "exp_avg/a": torch.zeros(2)}


@pytest.fixture(params=["local", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    """On a local disk, and on a filesystem without folders and renames."""
    if request.param == "local":
        return Checkpoints(str(tmp_path / "checkpoints"))
    return Checkpoints(f"memory://{tmp_path.name}/checkpoints")


def write(checkpoints: Checkpoints, step: int, world_size: int = 2) -> Checkpoint:
    """A complete checkpoint whose tensors were written by `world_size` ranks."""
    for rank in range(world_size):
        mine = {name: tensor for n, (name, tensor) in enumerate(TENSORS.items()) if n % world_size == rank}
        upload_parts(checkpoints, step, rank, [mine])
    checkpoints.publish(replace(STATE, step=step), collect_parts(checkpoints, step, world_size))
    return checkpoints.read(step)


def names(checkpoints: Checkpoints) -> list[str]:
    return checkpoints.store.list() if checkpoints.store.exists() else []


def test_it_exists_when_its_state_does(checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == []
    assert checkpoints.newest_readable() is None
    upload_parts(checkpoints, 12, 0, [dict(TENSORS)])
    assert checkpoints.steps() == []
    for step in (99_999_999, 12, 100):
        write(checkpoints, step)
    assert checkpoints.steps() == [12, 100, 99_999_999]
    newest = checkpoints.newest_readable()
    assert newest is not None
    assert newest.state == replace(STATE, step=99_999_999)
    check_belongs(newest, NETWORK, OBJECTIVE, PLAN)


def test_tensors_come_back_from_any_number_of_ranks(checkpoints: Checkpoints) -> None:
    for world_size in (1, 2, 3):
        with opened(write(checkpoints, world_size, world_size), World()) as tensors:
            assert all(torch.equal(tensors.get(*name.split("/")), tensor) for name, tensor in TENSORS.items())
            assert tensors.names("ema") == ["a"]
            with pytest.raises(Damaged, match="no tensor ema/b"):
                tensors.get("ema", "b")


def test_folders_of_others_are_left_alone(checkpoints: Checkpoints) -> None:
    write(checkpoints, 12)
    for name in ("step-00000012.bak/checkpoint.json", "old-run/checkpoint.json", "step-7/part.json"):
        checkpoints.store.write(name, b"{}")
    assert checkpoints.steps() == [12]
    before = names(checkpoints)
    checkpoints.remove_incomplete()
    assert names(checkpoints) == before


def test_a_storage_that_does_not_answer_is_not_a_damaged_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage while resuming must end the start, and not make it go on from an older checkpoint."""
    checkpoint = write(checkpoints, 12)

    def away(self: Store, name: str) -> bytes:
        raise UserError(f"{self.url_of(name)}: the storage does not answer")

    monkeypatch.setattr(Store, "read", away)
    monkeypatch.setattr(Store, "sha256", away)
    with pytest.raises(UserError, match="does not answer") as caught:
        checkpoints.read(12)
    assert not isinstance(caught.value, Damaged)
    with pytest.raises(UserError, match="does not answer") as caught, opened(checkpoint, World()):
        pass
    assert not isinstance(caught.value, Damaged)


def test_retention(checkpoints: Checkpoints) -> None:
    for step in range(100, 1000, 100):
        write(checkpoints, step)
    checkpoints.prune(2, 300)
    assert checkpoints.steps() == [300, 600, 800, 900]
    checkpoints.prune(2, None)
    assert checkpoints.steps() == [800, 900]
    assert {name.split("/")[0] for name in names(checkpoints)} == {"step-00000800", "step-00000900"}


def test_leftovers_of_killed_saves_are_removed_and_checkpoints_are_not(checkpoints: Checkpoints) -> None:
    write(checkpoints, 100)
    complete = names(checkpoints)
    upload_parts(checkpoints, 200, 1, [dict(TENSORS)])
    checkpoints.store.write("notes.txt", b"mine")
    if checkpoints.store.is_local:  # the write that was going on when the process was killed
        half = Path(checkpoints.store.path("step-00000300/.tmp-half"))
        half.parent.mkdir()
        half.write_bytes(b"half")
    assert names(checkpoints) != complete
    checkpoints.remove_incomplete()
    assert names(checkpoints) == ["notes.txt", *complete]
    if checkpoints.store.is_local:
        assert not half.parent.exists()


def test_a_writer_publishes_when_all_ranks_are_done(checkpoints: Checkpoints) -> None:
    main = CheckpointWriter(checkpoints, World(0, 2), keep_last=2, keep_every=None)
    other = CheckpointWriter(checkpoints, World(1, 2), keep_last=2, keep_every=None)
    publishing = threading.Thread(target=main._run, args=([{"weight/a": TENSORS["weight/a"]}], STATE))
    publishing.start()
    publishing.join(0.5)
    assert publishing.is_alive()
    assert checkpoints.steps() == []
    other._run([{"ema/a": TENSORS["ema/a"]}], STATE)
    publishing.join(30)
    main.check()
    assert checkpoints.steps() == [12]
    assert sorted(checkpoints.read(12).files) == ["tensors-00000-00000.safetensors", "tensors-00001-00000.safetensors"]
    assert not [name for name in names(checkpoints) if "part-" in name]


def test_a_failed_save_is_said_in_the_loop_and_harms_no_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    write(checkpoints, 6)
    (tmp_path / "checkpoints" / "step-00000012").write_text("a file where the folder should be")
    writer = CheckpointWriter(checkpoints, World(), keep_last=2, keep_every=None)
    writer._run([dict(TENSORS)], STATE)
    with pytest.raises(UserError, match="step-00000012"):
        writer.check()
    writer.check()  # said once
    assert checkpoints.steps() == [6]
    with opened(checkpoints.read(6), World()) as tensors:
        assert torch.equal(tensors.get("ema", "a"), TENSORS["ema/a"])


def test_parts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmad_dist.training.checkpoint_writer.FILE_BYTES", 100)
    tensors = [(str(n), torch.zeros(10)) for n in range(7)]
    parts = list(in_parts(iter(tensors)))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [name for part in parts for name in part] == [name for name, _ in tensors]


class Node(Checkpoints):
    """The checkpoints as one node sees them: without the steps in `unseen`."""

    def __init__(self, url: str, unseen: Sequence[int] = ()) -> None:
        super().__init__(url)
        self.unseen = unseen

    def steps(self) -> list[int]:
        return [step for step in super().steps() if step not in self.unseen]


def taken(*nodes: Node) -> list[int | str]:
    """The step that each of the nodes goes on from, or the sentence with which it ends."""

    def resume(world: World) -> int:
        def use(checkpoint: Checkpoint) -> None:
            with opened(checkpoint, world, ["ema/a"]) as tensors:
                assert torch.equal(tensors.get("ema", "a"), TENSORS["ema/a"])

        found = newest_usable(nodes[world.rank], world, use)
        assert found is not None
        return found.state.step

    return [str(found) if isinstance(found, Exception) else found for found in on_ranks(len(nodes), resume)]


def test_all_ranks_go_on_from_the_same_checkpoint(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    """A listing of another node is older, or a node cannot read what the main one has chosen."""
    for step in (400, 800):
        write(checkpoints, step)
    url = checkpoints.store.url
    assert taken(Node(url), Node(url, unseen=[800])) == [800, 800]
    assert taken(Node(url, unseen=[800]), Node(url)) == [400, 400]
    victim = checkpoints.folder(800)
    victim.write("tensors-00001-00000.safetensors", b"cut")
    assert taken(Node(url), Node(url)) == [400, 400]
    assert capsys.readouterr().err.count("checkpoint of step 800 cannot be used") == 1


def test_what_one_rank_meets_ends_all_with_its_sentence(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that does not answer one node, and checkpoints that none can use."""
    write(checkpoints, 400)
    url, fetch = checkpoints.store.url, checkpoint_reader.fetch_verified

    def away_for_the_second(checkpoint: Checkpoint, scratch: Path, shown: bool) -> Path:
        if shown:
            return fetch(checkpoint, scratch, shown)
        raise UserError("s3://bucket: does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_reader, "fetch_verified", away_for_the_second)
        assert taken(Node(url), Node(url)) == ["s3://bucket: does not answer"] * 2
    checkpoints.folder(400).write(STATE_NAME, b"{")
    (ours, theirs) = taken(Node(url), Node(url))
    assert ours == theirs
    assert "none of the 1 checkpoints can be used" in str(ours)


def refusal(checkpoint: Checkpoint, network: DiTSpec = NETWORK, plan: str = PLAN) -> str:
    with pytest.raises(UserError) as caught:
        check_belongs(checkpoint, network, OBJECTIVE, plan)
    assert checkpoint.store.url in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_architecture_or_stream_is_refused(checkpoints: Checkpoints) -> None:
    found = write(checkpoints, 12)
    message = refusal(found, DiTSpec(channels=8, grid=4, width=64, depth=2, heads=4))
    assert "heads 2, width 32" in message
    assert "heads 4, width 64" in message
    assert "depth" not in message
    assert "train.seed" in refusal(found, plan="q" * 64)


def test_one_that_names_no_position_is_of_a_run_of_one_batch(checkpoints: Checkpoints) -> None:
    """Checkpoints had no position before: it is step x batch of their own configuration."""
    old = body()
    del old["position"]
    checkpoints.folder(12).write(STATE_NAME, json.dumps(old).encode())
    assert checkpoints.read(12).state == STATE


def body(**changes: object) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(STATE), "files": {}} | changes


BAD_BODIES = ({"format": FORMAT}, body(colour="red"), body(format="fmad-checkpoint/1"), body(files={"a": "b"}))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', *map(json.dumps, BAD_BODIES)])
def test_a_damaged_state_is_passed_over(checkpoints: Checkpoints, content: str) -> None:
    write(checkpoints, 6)
    folder = checkpoints.folder(12)
    folder.write(STATE_NAME, content.encode())
    with pytest.raises(Damaged) as caught:
        checkpoints.read(12)
    assert f"{folder.url}/{STATE_NAME}: not a readable checkpoint" in str(caught.value)
    newest = checkpoints.newest_readable()
    assert newest is not None
    assert newest.state.step == 6


@pytest.mark.parametrize(
    "harm",
    [lambda data: None, lambda data: data[:-1], lambda data: data[:-1] + b"x"],
    ids=["missing", "truncated", "changed"],
)
def test_damaged_tensor_files_are_refused(checkpoints: Checkpoints, harm: Callable[[bytes], bytes | None]) -> None:
    checkpoint = write(checkpoints, 12)
    victim = "tensors-00001-00000.safetensors"
    data = harm(checkpoint.store.read(victim))
    if data is None:
        checkpoint.store.remove(victim)
    else:
        checkpoint.store.write(victim, data)
    with pytest.raises(Damaged, match=f"{checkpoint.store.url}/{victim}"), opened(checkpoint, World()):
        pass
