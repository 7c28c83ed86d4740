"""The record of a follower: one line per step, what is best, and a copy for MLflow that survives its death."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import RunConfig
from fmad_dist.follow.record import FollowRecord, record_folder, tracked_run
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import Results
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.tracking.runs import AddedMetrics
from fmad_dist.training.checkpoint import Checkpoints
from tests.follow.test_watch import write


class FakeRun:
    """Takes what it is given while it is alive."""

    def __init__(self, alive: bool = True) -> None:
        self.alive = alive
        self.taken: list[tuple[int, dict[str, float], dict[str, str]]] = []

    def add(self, step: int, values: dict[str, float], tags: dict[str, str]) -> bool:
        if self.alive:
            self.taken.append((step, values, tags))
        return self.alive


@pytest.fixture
def results() -> Callable[[float], Results]:
    """Results whose AUPRO grows with `quality`."""
    import numpy as np

    def make(quality: float) -> Results:
        state = EvaluationState(Protocol(map_size=8))
        rng = np.random.default_rng(0)
        for label, kind in ((0, "good"), (1, "stain"), (1, "scar")):
            mask = np.zeros((8, 8), bool)
            mask[2:5, 3:6] = label == 1
            image = np.zeros((8, 8, 3), np.uint8)
            scores = (rng.normal(size=(8, 8)) + quality * mask).astype(np.float32)
            state.update(ScoredImage(kind, "toy/disc", label, kind, float(label), scores, mask, image))
        return compute_results(state)

    return make


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "follow.jsonl").read_text().splitlines()]


def test_one_line_per_step_and_the_best(
    tmp_path: Path,
    checkpoints: Checkpoints,
    results: Callable[[float], Results],
) -> None:
    record = FollowRecord(tmp_path, per_class=4)
    assert record.best() is None
    for step, quality in ((20, 3.0), (10, 0.0), (30, 1.0)):
        record.add(write(checkpoints, step), results(quality), 1.0)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert all("not test results" in line["what"] for line in lines(tmp_path))
    assert lines(tmp_path)[0]["num_defects"] == 2
    assert lines(tmp_path)[0]["kinds"]["scratch"]["aupro"] is None
    assert lines(tmp_path)[0]["kinds"]["stain"]["image_auroc"] == 1.0
    assert json.loads((tmp_path / "follow.json").read_text())["step"] == 20
    record.add(write(checkpoints, 20), results(-3.0), 1.0)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    best = FollowRecord(tmp_path, per_class=4).best()
    assert best is not None
    assert best["step"] == 30


def test_a_restart_knows_what_was_evaluated(
    tmp_path: Path,
    checkpoints: Checkpoints,
    results: Callable[[float], Results],
) -> None:
    checkpoint = write(checkpoints, 10)
    FollowRecord(tmp_path, 4).add(checkpoint, results(1.0), 1.0)
    with open(tmp_path / "follow.jsonl", "a") as file:
        file.write('{"step": 20, "wh')  # another program's crash
    assert FollowRecord(tmp_path, 4).has(checkpoint)
    assert not FollowRecord(tmp_path, 5).has(checkpoint)  # other images
    assert not FollowRecord(tmp_path, 4).has(write(checkpoints, 10, value=2.0))  # other weights
    assert not FollowRecord(tmp_path, 4).has(write(checkpoints, 20))


def test_other_images_are_not_compared(
    tmp_path: Path,
    checkpoints: Checkpoints,
    results: Callable[[float], Results],
) -> None:
    FollowRecord(tmp_path, 4).add(write(checkpoints, 10), results(3.0), 1.0)
    record = FollowRecord(tmp_path, 5)
    record.add(write(checkpoints, 20), results(0.0), 1.0)
    best = record.best()
    assert best is not None
    assert best["step"] == 20


def test_a_server_that_comes_back_gets_what_it_missed(
    tmp_path: Path,
    checkpoints: Checkpoints,
    results: Callable[[float], Results],
) -> None:
    record, server = FollowRecord(tmp_path, 4), FakeRun(alive=False)
    for step in (10, 20):
        record.add(write(checkpoints, step), results(step / 10), 1.0)
        record.copy_to(server)  # type: ignore[arg-type]
    assert [line["tracked"] for line in lines(tmp_path)] == [False, False]
    server.alive = True
    record = FollowRecord(tmp_path, 4)
    record.copy_to(server)  # type: ignore[arg-type]
    record.copy_to(server)  # type: ignore[arg-type]
    assert [step for step, _, _ in server.taken] == [10, 20]
    assert all(name.startswith("synthetic/") for _, values, _ in server.taken for name in values)
    assert server.taken[1][2] == {"synthetic.best_step": "20"}
    assert [line["tracked"] for line in lines(tmp_path)] == [True, True]


def test_a_dead_server_is_said_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not AddedMetrics("http://127.0.0.1:9", RunConfig(), "id").add(10, {"synthetic/aupro": 0.5}, {})
    error = capsys.readouterr().err
    assert error.startswith("warning: MLflow at http://127.0.0.1:9 does not take step 10")
    assert len(error.splitlines()) == 1


def test_the_run_in_mlflow_is_the_one_of_the_training(tmp_path: Path) -> None:
    config = RunConfig()
    assert tracked_run(tmp_path, config, None) is None
    assert tracked_run(tmp_path, RunConfig.model_validate({"tracking": {"mlflow": False}}), "id") is None
    found = tracked_run(tmp_path, config, "id")
    assert found is not None
    assert found.run_id == "id"
    (tmp_path / "tracking.json").write_text(json.dumps({"uri": "http://there", "run_id": "other"}))
    found = tracked_run(tmp_path, config, "id")
    assert found is not None
    assert (found.uri, found.run_id) == ("http://there", "other")


def test_where_the_record_goes(run: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert record_folder(str(run), None) == run
    assert record_folder(str(tmp_path / "later"), None) == tmp_path / "later"
    assert record_folder("s3://bucket/checkpoints", tmp_path / "out") == tmp_path / "out"
    write(checkpoints, 10)
    for place in (checkpoints.store.url, "s3://bucket/checkpoints"):
        with pytest.raises(UserError, match=r"--out: .* is not a run directory"):
            record_folder(place, None)
