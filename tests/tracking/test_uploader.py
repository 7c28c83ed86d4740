"""The background copy of a run's metrics: every point at the server exactly once, whatever the server does."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.registry.register import sync_run
from fmad_dist.tracking import runs, uploader
from fmad_dist.tracking.record import RunRecord, read_lines
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.server import connect
from fmad_dist.tracking.uploader import LineReader, send
from tests.support.mlflow_server import BadProxy, MlflowServer


class Server:
    """What `send` and `last_step` use of a client, on a list; it fails when it is told to."""

    def __init__(self) -> None:
        self.points: list[Any] = []
        self.fails = False

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        if self.fails:
            raise ConnectionError("away")
        self.points += [point for point in metrics if not self._has(point)]

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return [point for point in self.points if point.key == name]

    def _has(self, point: Any) -> bool:
        key = (point.key, point.value, point.timestamp, point.step)
        return any((old.key, old.value, old.timestamp, old.step) == key for old in self.points)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("log"), st.integers(1, 30)),
        st.tuples(st.just("send"), st.booleans()),
        st.tuples(st.just("rewind"), st.integers(0, 40)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=25,
)


@given(ACTIONS)
def test_every_step_arrives_once_over_outages_rewinds_and_restarts(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, Any]]
) -> None:
    """Steps that are trained anew after a rewind are not sent again; the first record of them stays."""
    record = RunRecord(tmp_path_factory.mktemp("run"), is_main=True)
    path = record.folder / "metrics.jsonl"
    server, reader, step, furthest = Server(), LineReader(path), 0, 0
    for action, value in [*actions, ("send", False)]:
        if action == "log":
            for _ in range(value):
                step += 1
                record.metrics(step, {"samples": step * 8.0, "loss": 1.0 / step})
        elif action == "rewind":
            step = min(step, value)
            record.rewind(step)
        elif action == "restart":
            reader = LineReader(path, uploader.last_step(server, "run"))
        else:
            server.fails = value
            before = len(server.points)
            if value and reader.read():
                with pytest.raises(ConnectionError):
                    send(server, "run", reader)
                assert len(server.points) == before
            else:
                send(server, "run", reader)
                furthest = max(furthest, step)
    arrived = Counter((point.key, point.step) for point in server.points)
    assert arrived == Counter({(name, s): 1 for name in ("samples", "loss") for s in range(1, furthest + 1)})


def test_requests_are_bounded_and_a_line_being_written_waits(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, is_main=True)
    for step in range(1, 8):
        record.metrics(step, {"a": 1.0, "b": 2.0})
    reader = LineReader(tmp_path / "metrics.jsonl")
    found = []
    while lines := reader.read(max_metrics=9):
        found.append([line["step"] for line in lines])
        assert reader.read(max_metrics=9) == lines, "not taken, so it is there again"
        reader.take(lines)
    assert found == [[1, 2], [3, 4], [5, 6], [7]]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "ti')
        file.flush()
        assert reader.read() == []
        file.write('me": 5, "a": 3.0}\n')
    assert reader.read() == [{"step": 8, "time": 5, "a": 3.0}]


@dataclass(frozen=True)
class Place:
    """A real server, a proxy before it, and how to look at what arrived."""

    server: MlflowServer
    proxy: BadProxy
    output: Path

    def config(self, name: str) -> RunConfig:
        config = RunConfig(name=name, output=str(self.output), tracking=TrackingConfig(uri=self.proxy.url))
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "config.yaml").write_text(dump_config(config))
        return config

    def check(self, config: RunConfig, run_id: str, status: str) -> None:
        """All points of the local record are there once, with their values and times."""
        client = connect(self.proxy.url)
        lines = read_lines(config.run_dir / "metrics.jsonl")
        for name in ("samples", "loss"):
            history = client.get_metric_history(run_id, name)
            arrived = sorted((point.step, point.value, point.timestamp) for point in history)
            assert arrived == [(line["step"], line[name], line["time"]) for line in lines]
        assert client.get_run(run_id).info.status == status


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("mlflow")
    server = MlflowServer(root / "server").start()
    proxy = BadProxy(server.port)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        patch.setattr(uploader, "PACE_S", 0.1)
        patch.setattr(uploader, "LONGEST_PAUSE_S", 0.5)
        yield Place(server, proxy, root / "runs")
    proxy.stop()
    server.kill()


def start(config: RunConfig, run_id: str | None = None) -> tuple[TrackedRun, RunRecord]:
    record = RunRecord(config.run_dir, is_main=True)
    tracked = TrackedRun(config, record)
    tracked.start(run_id, {"fmad.world_size": "1"})
    return tracked, record


def train(record: RunRecord, first: int, last: int) -> float:
    """Lines of steps first..last as a training writes them; the longest time that one took."""
    longest = 0.0
    for step in range(first, last + 1):
        before = time.perf_counter()
        record.metrics(step, {"samples": 8.0 * step, "loss": 1.0 / step})
        longest = max(longest, time.perf_counter() - before)
        time.sleep(0.01)
    return longest


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_bad_server_slows_and_loses_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors, silence, a refused token and a killed server in the middle of one run."""
    config = place.config("drill")
    tracked, record = start(config)
    assert tracked.run_id is not None
    train(record, 1, 20)
    step = 20
    for fault in ("error", "hang", "forbidden"):
        place.proxy.behave(fault)
        seen = place.proxy.num_faults
        assert train(record, step + 1, step + 20) < 10.0  # it writes lines to a file; who waits, waits 20 s
        step += 20
        wait_for(lambda seen=seen: place.proxy.num_faults > seen)
        place.proxy.behave("none")
        train(record, step + 1, step + 5)
        step += 5
        at_server = SimpleNamespace(step=step)
        wait_for(lambda want=at_server: uploader.last_step(connect(place.proxy.url), str(tracked.run_id)) == want.step)
    place.server.kill()
    assert train(record, step + 1, step + 40) < 10.0
    place.server.start()
    train(record, step + 41, step + 50)
    tracked.close(patience_s=60.0)
    place.check(config, tracked.run_id, "FINISHED")
    said = capsys.readouterr().err
    assert 1 <= said.count("MLflow does not take metrics") <= uploader.LOUD_OUTAGES
    assert said.count("MLflow takes metrics again") == said.count("MLflow does not take metrics")


def test_a_run_that_never_trained_is_not_sent(tmp_path: Path) -> None:
    config = RunConfig(name="new", output=str(tmp_path), tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match=r"metrics\.jsonl: empty, this run has not trained yet"):
        sync_run(config.run_dir)
    assert not list(tmp_path.rglob("mlflow.db"))
    assert not list(tmp_path.rglob(runs.NOTE_NAME))


@pytest.mark.slow
def test_what_a_dead_server_missed_is_sent_later(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = place.config("late")
    tracked, record = start(config)
    run_id = tracked.run_id
    assert run_id is not None
    train(record, 1, 10)
    place.proxy.behave("error")
    train(record, 11, 20)
    tracked.close("KILLED", patience_s=0.5)
    assert f"fmad sync {config.run_dir}" in capsys.readouterr().err
    again, record = start(config, run_id)  # a resume while the server is still away goes on
    record.rewind(15)
    train(record, 16, 30)
    again.close(patience_s=0.5)
    monkeypatch.setattr(runs, "PATIENCE_S", 0.0)
    place.proxy.behave("none")
    assert f"MLflow run {run_id}" in sync_run(config.run_dir)
    assert sync_run(config.run_dir).startswith("0 records sent")
    place.check(config, run_id, "FINISHED")
    run = connect(place.proxy.url).get_run(run_id)
    assert run.data.tags["fmad.world_size"] == "1"
