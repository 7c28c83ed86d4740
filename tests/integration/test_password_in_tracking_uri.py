"""A server with users, whose URI with the password is given by MLFLOW_TRACKING_URI: the password is stored nowhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.registry.evidence import registered_as
from fmad_dist.registry.register import register_tracked
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import AddedMetrics, ServerStatus, TrackedRun
from fmad_dist.tracking.server import use_server
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow
PASSWORD = "correct-horse-battery"


def test_the_password_is_in_no_file_and_in_no_message(
    make_detector: Callable[..., Detector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = MlflowServer(tmp_path / "server", admin=("admin", PASSWORD)).start()
    uri = server.url.replace("://", f"://admin:{PASSWORD}@")
    shown = server.url.replace("://", "://***@")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = RunConfig(name="first", output=str(tmp_path / "runs"), tracking=TrackingConfig())
    record = RunRecord(config.run_dir, is_main=True)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        record.write("config.yaml", dump_config(config))
        tracked = TrackedRun(config, record)
        tracked.start(None)
        record.metrics(10, {"loss": 0.5, "samples": 80.0})
        detector = make_detector((1.0, 2.0))
        detector.save(config.run_dir / "detector")
        register_tracked(tracked, config.run_dir / "detector")
        tracked.close()
        note = json.loads((config.run_dir / "tracking.json").read_text())
        assert note == {"uri": shown, "run_id": tracked.run_id, "status": "FINISHED"}
        assert TrackedRun(config, record).noted() == note  # it is the same server
        status = ServerStatus(config.run_dir)
        assert (status.status, status.problem) == ("FINISHED", "")
        spec = json.loads((config.run_dir / "detector" / "detector.json").read_text())
        assert registered_as(str(config.run_dir), spec["weights_sha256"]) == "models:/fmad/1"

        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
        assert "set MLFLOW_TRACKING_URI to this server again" in ServerStatus(config.run_dir).problem
    finally:
        server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="cannot be used") as caught:
        TrackedRun(config, record).start(None)
    assert not AddedMetrics(None, config, str(tracked.run_id)).add(1, {"loss": 1.0}, {})
    said = capfd.readouterr()
    use_server("sqlite:///")
    texts = [str(caught.value), said.out, said.err]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    stored = (tmp_path / "server").rglob("*")  # parameters, tags and artifacts; the server's own settings are its own
    texts += [p.read_bytes().decode("latin-1") for p in stored if p.is_file() and p.name != "auth.ini"]
    assert len(texts) > 15
    assert not [text for text in texts if PASSWORD in text]
