"""MLflow's sqlite file: whole whoever makes it, at any path, and a sentence when it cannot be used."""

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.registry.register import sync_run
from fmad_dist.tracking.database import client_on, sqlite_path, sqlite_uri
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.server import connect, tracking_uri
from tests.support.full_disk import fill, small_disk

PROCESSES = 4


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start_run(output: Path, number: int, together: Barrier) -> None:
    """What the main rank of a training does first; exit code 0 if it has a run."""
    config = RunConfig(name=f"run{number}", output=str(output))
    together.wait()
    TrackedRun(config, RunRecord(config.run_dir, is_main=True)).start(None, {"number": str(number)})
    os._exit(0)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_first_runs_that_start_at_once_share_one_database(tmp_path: Path, no_server: None) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # loaded once, so that the processes meet

    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(PROCESSES)
    started = [fork.Process(target=start_run, args=(tmp_path, number, together)) for number in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * PROCESSES
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("fmad")
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == names_in(tmp_path) & {
        f"run{number}" for number in range(PROCESSES)
    }


def test_a_start_that_is_killed_in_between_leaves_no_half_database(tmp_path: Path) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    path = tmp_path / "mlflow.db"
    child = multiprocessing.get_context("fork").Process(target=client_on, args=(f"sqlite:///{path}",))
    child.start()
    deadline = time.monotonic() + 60.0
    while not any(one.stat().st_size > 50_000 for one in tmp_path.glob(".mlflow.db.new")):
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not path.exists()
    assert connect(f"sqlite:///{path}").search_experiments()
    assert names_in(tmp_path) == {"mlflow.db", ".fmad-lock"}


@pytest.mark.parametrize("name", ["feature%2Fx", "100%", "why?", "a b+c"])
def test_runs_may_be_at_any_path(tmp_path: Path, no_server: None, name: str) -> None:
    """Metrics, artifacts and nothing beside the folder."""
    output = tmp_path / name / "runs"
    config = RunConfig(name="run", output=str(output))
    path = sqlite_path(tracking_uri(config))
    assert path == output / "mlflow.db"
    assert connect(sqlite_uri(path)).search_experiments()
    assert names_in(tmp_path) == {name}
    assert names_in(output) == {"mlflow.db", ".fmad-lock"}


def test_artifacts_of_runs_at_a_path_with_a_percent_sign(tmp_path: Path, no_server: None) -> None:
    output = tmp_path / "feature%2Fx"
    config = RunConfig(name="run", output=str(output))
    tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
    tracked.start(None)
    client = connect(tracking_uri(config))
    client.log_text(tracked.run_id, "kept", "note.txt")
    tracked.close()
    assert Path(client.download_artifacts(tracked.run_id, "note.txt")).read_text() == "kept"
    assert [path.read_text() for path in tmp_path.glob("feature_2Fx/mlartifacts/**/note.txt")] == ["kept"]
    assert names_in(tmp_path) == {"feature%2Fx", "feature_2Fx"}


def refused(uri: str) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        connect(uri)
    assert time.monotonic() - started < 20.0  # MLflow alone tries for two minutes
    return str(caught.value)


def test_a_database_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("no database at all, but long enough to be looked at " * 100)
    assert f"{path}: cannot be used as MLflow's database (file is not a database)" in refused(f"sqlite:///{path}")
    path.unlink()
    path.mkdir()
    assert f"{path}: cannot be used" in refused(f"sqlite:///{path}")


def test_a_half_made_database_of_an_older_start_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    connect(f"sqlite:///{path}")
    half = tmp_path / "half.db"
    path.rename(half)
    with closing(sqlite3.connect(half)) as database:
        database.execute("drop table params")
        database.execute("update alembic_version set version_num = '0123456789ab'")
        database.commit()
    said = refused(f"sqlite:///{half}")
    assert f"{half}: cannot be used as MLflow's database (Can't locate revision" in said
    assert "\n" not in said


def test_a_full_disk_is_a_sentence_and_leaves_no_half_database(tmp_path: Path, no_server: None) -> None:
    with small_disk(tmp_path / "small", 300_000) as disk:
        config = RunConfig(name="run", output=str(disk), tracking=TrackingConfig(mlflow=True))
        tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
        with pytest.raises(UserError, match=r"mlflow\.db: cannot be used as MLflow's database \(.*full"):
            tracked.start(None)
        assert not (disk / "mlflow.db").exists()


def test_a_disk_that_gets_full_stops_no_training(
    tmp_path: Path, no_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the database has missed is sent later."""
    with small_disk(tmp_path / "small", 8_000_000) as disk:
        tracking = TrackingConfig(mlflow=True, uri=sqlite_uri(disk / "mlflow.db"))
        config = RunConfig(name="run", output=str(tmp_path / "runs"), tracking=tracking)
        record = RunRecord(config.run_dir, is_main=True)
        record.write("config.yaml", dump_config(config))
        tracked = TrackedRun(config, record)
        tracked.start(None)
        record.metrics(1, {"loss": 1.0})
        fill(disk)
        for step in range(2, 400):
            record.metrics(step, {"loss": 1.0 / step, **{f"value{number}": 0.5 for number in range(20)}})
        tracked.close(patience_s=0.5)
        assert f"fmad sync {config.run_dir}" in capsys.readouterr().err
        (disk / "filler").unlink()
        assert "records sent" in sync_run(config.run_dir)
        run = client_on(tracking.uri).get_run(tracked.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["loss"] == pytest.approx(1.0 / 399)
