"""Runs and models in a real MLflow on sqlite. One server and one registered detector for all tests: both are slow."""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.cli import app
from fmad_dist.config.files import dump_config, flat_config
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.registry.evidence import log_evaluation
from fmad_dist.registry.register import register_run, register_trained
from fmad_dist.registry.tables import show_version
from fmad_dist.report.result_files import EVALUATION_FILES
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.registered_files import download_model
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.server import connect, named_version, tracking_uri

NAME = "inspector"

pytestmark = pytest.mark.slow  # importing MLflow and migrating an empty database takes more than 10 s on a busy machine


@dataclass(frozen=True)
class Finished:
    """A finished run with a registered detector."""

    config: RunConfig
    tracked: TrackedRun
    detector: Path
    client: Any

    @property
    def run(self) -> Any:
        return self.client.get_run(self.tracked.run_id)


@pytest.fixture(scope="module", autouse=True)
def _own_server() -> Iterator[None]:
    """No server of the user, no long retries, and nothing left behind in MLflow's global state."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield
    mlflow.set_tracking_uri("")
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow exports the URI it is set to


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "feature%2Fx"  # a branch's name, as builds quote it


def config_in(output: Path, name: str = "first", **tracking: object) -> RunConfig:
    return RunConfig(name=name, output=str(output), tracking=TrackingConfig(model_name=NAME, **tracking))


@pytest.fixture(scope="module")
def finished(output: Path, make_detector: Callable[..., Detector]) -> Finished:
    """What training does with tracking from start to end."""
    config = config_in(output)
    record = RunRecord(config.run_dir, is_main=True)
    tracked = TrackedRun(config, record)
    tracked.start(None, {"fmad.device": "cpu"})
    record.metrics(10, {"loss": 0.5, "lr": 0.001, "samples": 80.0})
    record.metrics(20, {"loss": 0.25, "lr": 0.002, "samples": 160.0})
    make_detector((1.0, 2.0)).save(config.run_dir / "detector")
    register_trained(tracked, config.run_dir / "detector")
    tracked.close()
    return Finished(config, tracked, config.run_dir / "detector", connect(tracking_uri(config)))


def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_the_run_has_the_whole_configuration(finished: Finished) -> None:
    assert finished.run.info.status == "FINISHED"
    assert finished.run.info.run_name == "first"
    assert finished.run.data.params == {key: str(value) for key, value in flat_config(finished.config).items()}
    known = json.loads((finished.config.run_dir / "tracking.json").read_text())
    assert known == {"uri": tracking_uri(finished.config), "run_id": finished.tracked.run_id, "status": "FINISHED"}
    assert finished.run.data.tags["fmad.device"] == "cpu"


def test_the_run_has_the_metrics_by_step(finished: Finished) -> None:
    history = finished.client.get_metric_history(finished.tracked.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(10, 0.5), (20, 0.25)]


def test_the_version_names_data_and_licence(finished: Finished) -> None:
    version = finished.client.get_model_version_by_alias(NAME, "candidate")
    assert version.run_id == finished.tracked.run_id
    spec = json.loads((finished.detector / "detector.json").read_text())
    assert json.loads(version.tags["fmad.data"]) == spec["manifest_digests"]
    assert version.tags["fmad.weights_sha256"] == spec["weights_sha256"]
    (lineage,) = download_model(f"models:/{NAME}/{version.version}").rglob("lineage.json")
    body = json.loads(lineage.read_text())
    assert (body["run_id"], body["licences"]) == (finished.tracked.run_id, spec["licences"])
    assert body["config"] == finished.config.model_dump(mode="json")
    noted = json.loads((finished.config.run_dir / "registered.json").read_text())
    assert noted == {"name": NAME, "version": str(version.version)}


def test_a_registered_detector_is_the_trained_one(finished: Finished) -> None:
    expected = Detector.load(finished.detector)(images())
    for uri in (f"models:/{NAME}@candidate", f"models:/{NAME}/1"):
        found = Detector.load(uri)(images())
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.maps, expected.maps)
        assert torch.equal(found.thresholds, expected.thresholds)


def test_mlflow_loads_the_same_scores(finished: Finished) -> None:
    import mlflow
    import pandas as pd

    from fmad_dist.images.codec import open_image, square_rgb

    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert model.metadata.signature.inputs.input_names() == ["image"]
    example = model.input_example["image"]
    pixels = np.array(square_rgb(open_image(base64.b64decode(example[0]), "the example"), 64, "the example"))
    expected = Detector.load(finished.detector)(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    table = model.predict(pd.DataFrame({"image": [example[0], "nothing"]}), params={"sensitivity": 1.0})
    assert table["score"][0] == pytest.approx(expected.scores.item(), rel=1e-5)
    assert table["class_name"][0] == f"toy/{expected.classes.item()}"
    assert table["anomalous"].tolist() == [True, None]
    assert "not base64" in table["error"][1]
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(pd.DataFrame({"picture": example}))


def test_a_registered_model_holds_no_pickles(finished: Finished) -> None:
    names = {path.name for path in download_model(f"models:/{NAME}/1").rglob("*") if path.is_file()}
    assert {"detector.json", "weights.safetensors", "pyfunc.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pth", ".pt"))]


def test_a_resumed_run_goes_on(finished: Finished) -> None:
    tracked = TrackedRun(finished.config, RunRecord(finished.config.run_dir, is_main=True))
    tracked.start(finished.tracked.run_id)
    assert tracked.run_id == finished.tracked.run_id
    deadline = time.monotonic() + 30.0
    while finished.run.info.status != "RUNNING":  # in the background
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracked.close()
    assert finished.run.info.status == "FINISHED"


def test_a_run_is_registered_again(finished: Finished) -> None:
    (finished.config.run_dir / "config.yaml").write_text(dump_config(finished.config))
    assert register_run(finished.config.run_dir) == f"models:/{NAME}/2"
    version = finished.client.get_model_version_by_alias(NAME, "candidate")
    assert (str(version.version), version.run_id) == ("2", finished.tracked.run_id)


def test_a_version_is_downloaded_to_a_folder(finished: Finished, tmp_path: Path) -> None:
    command = ["registry", "download", f"models:/{NAME}@candidate", "--out", str(tmp_path / "here")]
    command += ["--tracking-uri", tracking_uri(finished.config)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"models:/{NAME}@candidate: 2 classes" in done.stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "detector.json",
        "weights.safetensors",
        "lineage.json",
    }
    assert Detector.load(tmp_path / "here").spec == Detector.load(finished.detector).spec
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, UserError)
    assert "not empty" in str(again.exception)


def test_an_evaluation_is_copied_to_its_version(finished: Finished, tmp_path: Path) -> None:
    """Of a registered model, and of a run directory whose detector was registered."""
    weights = json.loads((finished.detector / "detector.json").read_text())["weights_sha256"]
    for name in EVALUATION_FILES[1:]:
        (tmp_path / name).write_text("x")
    for model, number, value in ((f"models:/{NAME}/1", "1", 0.75), (str(finished.config.run_dir), "2", 0.5)):
        results = {"mean": {"image_auroc": value, "pixel_ap": None}, "protocol_title": "p v1"}
        (tmp_path / "results.json").write_text(json.dumps(results))
        log_evaluation(model, tmp_path, weights, {"toy": "d"}, ["data"])
        version = finished.client.get_model_version(NAME, number)
        assert version.tags["fmad.test_image_auroc"] == f"{value:.6f}"
        assert finished.run.data.metrics["test_image_auroc"] == value
        folder = f"evaluation/version-{number}"
        found = {item.path for item in finished.client.list_artifacts(finished.tracked.run_id, folder)}
        assert found == {f"{folder}/{name}" for name in EVALUATION_FILES}
    log_evaluation(str(finished.config.run_dir), tmp_path, "0" * 64, {}, [])  # other weights than were registered
    assert "toy" in finished.client.get_model_version(NAME, "2").tags["fmad.evaluation"]


def test_other_thresholds_of_a_run_are_registered_and_told(finished: Finished, tmp_path: Path) -> None:
    own = Detector.load(finished.detector)
    known = own.spec.calibration
    assert known is not None
    own.with_calibration(replace(known, thresholds=(7.0, 8.0), given={"photos": "abc"})).save(tmp_path / "again")
    uri = register_run(finished.config.run_dir, tmp_path / "again")
    assert Detector.load(uri).thresholds.tolist() == [7.0, 8.0]
    assert "thresholds     calibrated again on photos, digest abc" in list(show_version(uri))
    with torch.no_grad():
        own.class_means += 1.0
    own.save(tmp_path / "other")
    with pytest.raises(UserError, match=r"--model .*other: not a detector of .*first, whose weights are others"):
        register_run(finished.config.run_dir, tmp_path / "other")


def test_a_report_names_the_version_behind_an_alias(finished: Finished) -> None:
    run = finished.tracked.run_id
    assert named_version(f"models:/{NAME}/1") == f"models:/{NAME}/1, MLflow run {run}"
    found = named_version(f"models:/{NAME}@candidate")
    assert found.startswith(f"models:/{NAME}/")
    assert found.endswith(f", now models:/{NAME}@candidate, MLflow run {run}")
    assert named_version("runs/first") == "runs/first"
    with pytest.raises(UserError, match="models:/nobody/1: not in the registry"):
        named_version("models:/nobody/1")


@pytest.mark.parametrize("uri", [f"models:/{NAME}@champion", f"models:/{NAME}/99", "models:/nobody/1", "models:/x"])
def test_a_version_that_is_not_there_is_named(finished: Finished, uri: str) -> None:
    with pytest.raises(UserError) as caught:
        Detector.load(uri)
    assert uri in str(caught.value)
    assert tracking_uri(finished.config) in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "nosuch://server",
        "sqlite:////proc/none/mlflow.db",
    ],
)
def test_a_dead_server_is_said_before_training(tmp_path: Path, uri: str) -> None:
    config = config_in(tmp_path, uri=uri)
    tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
    with pytest.raises(UserError, match=r"tracking\.mlflow=false") as caught:
        tracked.start(None)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_ranks_and_switched_off_tracking_do_nothing(tmp_path: Path) -> None:
    for config, is_main in ((config_in(tmp_path, uri="nosuch://x"), False), (config_in(tmp_path, mlflow=False), True)):
        tracked = TrackedRun(config, RunRecord(config.run_dir, is_main))
        tracked.start(None)
        register_trained(tracked, tmp_path)
        tracked.close()
        assert tracked.run_id is None
    assert not (tmp_path / "mlflow.db").exists()


def test_the_configured_server_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(config_in(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(config_in(tmp_path)) == "http://environment"
    assert tracking_uri(config_in(tmp_path, uri="http://configured")) == "http://configured"
