"""Where a run is, with and without its server, and when its files are damaged."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.cli import app
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import DataConfig, RunConfig, TrackingConfig, TrainConfig
from fmad_dist.detector import Detector
from fmad_dist.detector.files import read_spec, write_detector
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.stream.mixture import Mixture
from fmad_dist.tracking import runs as asking
from fmad_dist.tracking.record import RunRecord
from fmad_dist.training.checkpoint import STATE_NAME, Checkpoints, TrainState
from fmad_dist.training.checkpoint_writer import collect_parts, upload_parts
from fmad_dist.training.status import RunStatus, check_complete

NETWORK = asdict(DiTSpec(channels=8, grid=4, width=32, depth=2, heads=2))


class FakeClient:
    """A server that knows one run, up to `step`."""

    def __init__(self, step: int = 20) -> None:
        self.step = step

    def get_run(self, run_id: str) -> Any:
        assert run_id == "abc"
        return SimpleNamespace(info=SimpleNamespace(status="FINISHED"))

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        assert name == "samples"
        return [SimpleNamespace(step=self.step)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="first",
        output=str(tmp_path / "runs"),
        data=DataConfig(manifests=("data/a", "data/b")),
        train=TrainConfig(steps=40),
        tracking=TrackingConfig(uri="http://mlflow.example"),
    )


def save(checkpoints: Checkpoints, step: int, config: RunConfig) -> None:
    upload_parts(checkpoints, step, 0, [{"ema/a": torch.ones(4)}])
    dumped = config.model_dump(mode="json")
    state = TrainState(
        step, step, "p" * 64, NETWORK, config.objective.model_dump(), (0.5, 2.0), "abc", dumped, 8 * step
    )
    checkpoints.publish(state, collect_parts(checkpoints, step, 1))


@pytest.fixture
def run(config: RunConfig) -> Path:
    """A run that has 30 of its 40 steps, with checkpoints of 10, 20 and 30 and an unfinished one."""
    record = RunRecord(config.run_dir, is_main=True)
    record.write("config.yaml", dump_config(config))
    for step in (10, 20, 30):
        record.metrics(step, {"loss": 1.0 / step, "samples": 8.0 * step, "system/node0/cpu_percent": 5.0})
        save(Checkpoints(config.checkpoint_url), step, config)
    upload_parts(Checkpoints(config.checkpoint_url), 35, 0, [{"ema/a": torch.ones(4)}])
    return config.run_dir


def track(run: Path, status: str | None, version: bool) -> None:
    note = {"uri": "http://user:hidden@mlflow.example", "run_id": "abc", "status": status}
    (run / "tracking.json").write_text(json.dumps(note))
    if version:
        (run / "registered.json").write_text(json.dumps({"name": "fmad", "version": "3"}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def text(status: RunStatus) -> str:
    return "\n".join(status.lines())


def test_a_run_that_trains(run: Path) -> None:
    before = contents(run)
    found = RunStatus(str(run))
    told = text(found)
    assert "first: step 30 of 40 (75%), it seems to run" in told
    assert "step 30, 20" in told
    assert "loss 0.03333, samples 240\n" in told
    assert f"10, 20, 30 at {run / 'checkpoints'}" in told
    assert "newest       step 30" in told
    assert "incomplete   35" in told
    assert "detector       none" in told
    assert "MLflow         not tracked" in told
    assert found.next_command == f"fmad train --config {run / 'config.yaml'}"
    assert contents(run) == before


def test_a_run_that_ended_before_its_last_step(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either its end was noted, or nothing came for as long as the watchdog waits."""
    now = time.time()
    track(run, "KILLED", version=False)
    monkeypatch.setattr(asking, "client_at", lambda uri: FakeClient())
    assert "75%), not complete" in text(RunStatus(str(run)))
    (run / "tracking.json").unlink()
    monkeypatch.setattr(time, "time", lambda: now + 1801.0)
    assert "75%), not complete" in text(RunStatus(str(run)))


@pytest.mark.parametrize("damage", ["state", "tensors", "all"])
def test_damaged_checkpoints_are_named_and_the_one_before_is_the_newest(run: Path, damage: str) -> None:
    folder = run / "checkpoints"
    if damage != "tensors":
        (folder / "step-00000030" / STATE_NAME).write_text("{")
    if damage != "state":
        (next((folder / "step-00000020").glob("tensors-*"))).write_bytes(b"cut")
    found = RunStatus(str(run))
    if damage == "state":
        assert found.usable == 20
        assert [problem[:9] for problem in found.problems] == ["step 30: "]
    elif damage == "tensors":
        assert (found.usable, found.problems) == (30, [])  # older ones are not looked at
    else:
        assert found.usable == 10
        assert "not a readable checkpoint" in found.problems[0]
        assert "missing or truncated" in found.problems[1]
        assert f"problem        {found.problems[0]}" in text(found)


def complete(run: Path, config: RunConfig, detector: Detector) -> None:
    RunRecord(run, is_main=True).metrics(40, {"loss": 0.01})
    save(Checkpoints(config.checkpoint_url), 40, config)
    asked = {"train_step": 40, "features": config.features, "objective": config.objective, "scorer": config.scorer}
    spec = detector.spec.model_copy(update={**asked, "protocol": config.protocol})
    write_detector(run / "detector", spec, detector.state_dict())


def test_a_complete_run_and_what_its_server_lacks(
    run: Path, config: RunConfig, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(run, config, tiny_detector)
    track(run, "FINISHED", version=True)
    monkeypatch.setattr(asking, "client_at", lambda uri: FakeClient())
    found = RunStatus(str(run))
    assert "step 40 of 40 (100%), complete" in text(found)
    scorer = config.scorer.name
    assert f"detector       of step 40, scorer {scorer}, 2 thresholds at 0.01 false alarms" in text(found)
    assert "run abc at http://***@mlflow.example: FINISHED, metrics up to step 20 of 40" in text(found)
    assert "registered as models:/fmad/3" in text(found)
    assert found.next_command == f"fmad sync {run}"  # 20 of 40
    monkeypatch.setattr(asking, "client_at", lambda uri: FakeClient(40))
    assert RunStatus(str(run)).next_command.startswith("fmad evaluate --model")
    (run / "registered.json").unlink()
    assert RunStatus(str(run)).next_command == f"fmad sync {run}"


def test_a_server_that_does_not_answer_is_a_sentence(
    run: Path, config: RunConfig, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(uri: str) -> None:
        raise ConnectionError(f"no route to {uri}\nmore")

    complete(run, config, tiny_detector)
    track(run, "FINISHED", version=True)
    monkeypatch.setattr(asking, "client_at", away)
    found = RunStatus(str(run))
    line = "run abc at http://***@mlflow.example cannot be asked (no route to http://***@mlflow.example)"
    assert line in text(found)
    assert "hidden" not in text(found)
    assert found.next_command == f"fmad evaluate --model {run} --data data/a --data data/b --out FOLDER"


def test_a_registry_that_is_not_there_is_not_made(run: Path, tmp_path: Path) -> None:
    (run / "tracking.json").write_text(
        json.dumps({"uri": f"sqlite:///{tmp_path}/no.db", "run_id": "a", "status": None})
    )
    assert "no.db: no registry is there" in text(RunStatus(str(run)))
    assert not (tmp_path / "no.db").exists()


def test_a_damaged_detector_is_named(run: Path, config: RunConfig, tiny_detector: Detector) -> None:
    complete(run, config, tiny_detector)
    (run / "detector" / "weights.safetensors").write_bytes(b"cut")
    found = RunStatus(str(run))
    assert not found.is_complete
    assert "weights.safetensors: changed after it was written" in found.problems[0]


def test_a_detector_of_another_start_does_not_complete_a_run(
    run: Path, config: RunConfig, tiny_detector: Detector
) -> None:
    complete(run, config, tiny_detector)
    assert RunStatus(str(run)).is_complete
    more = config.model_copy(update={"train": config.train.model_copy(update={"steps": 41})})
    RunRecord(run, is_main=True).write("config.yaml", dump_config(more))
    save(Checkpoints(config.checkpoint_url), 41, config)
    assert not RunStatus(str(run)).is_complete


def test_a_scheduler_is_told_whether_the_run_is_complete(
    config: RunConfig, tiny_url: str, tiny_detector: Detector
) -> None:
    config = config.model_copy(update={"data": DataConfig(manifests=(tiny_url,))})
    with pytest.raises(UserError, match="there is no detector yet; start the training again") as caught:
        check_complete(config)
    assert caught.value.exit_code == 75
    complete(config.run_dir, config, tiny_detector)
    with pytest.raises(UserError, match="the detector is of other manifest_digests"):
        check_complete(config)
    spec = read_spec(config.run_dir / "detector")
    digests = {"manifest_digests": Mixture.load([tiny_url]).digests}
    write_detector(config.run_dir / "detector", spec.model_copy(update=digests), tiny_detector.state_dict())
    check_complete(config)


def test_checkpoints_at_a_url_tell_the_run(config: RunConfig, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/first"
    save(Checkpoints(url), 10, config)
    found = RunStatus(url)
    assert text(found).splitlines()[0] == "run            first: step 10 of 40 (25%), not complete"
    assert found.next_command == f"fmad export --run {url} --out FOLDER"


def test_the_command_tells_the_best_checkpoint_of_a_follower(run: Path) -> None:
    body = {"what": "synthetic", "best_by": "aupro", "step": 20, "mean": {"aupro": 0.5}}
    (run / "follow.json").write_text(json.dumps(body))
    told = CliRunner().invoke(app, ["status", str(run)])
    assert told.exit_code == 0, told.output
    assert "follow         synthetic: aupro is best at step 20\n" in told.stdout
    assert told.stdout.splitlines()[-1].endswith("config.yaml   (if it does not run any more)")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for name in ("nothing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"{name}: no config\.yaml and no checkpoint"):
            RunStatus(str(tmp_path / name))
