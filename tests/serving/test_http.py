"""A registered version behind `mlflow models serve`, asked over HTTP."""

import json
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import SPEC_NAME
from fmad_dist.registry.register import register_trained
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.server import tracking_uri
from tests.support.model_server import ModelServer, table
from tests.support.sent_images import encoded, odd_images, picture, sent

pytestmark = pytest.mark.slow  # MLflow, its database and a server of its own take 30 s on a busy machine


def registered(config: RunConfig, detector: Detector) -> Path:
    tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
    tracked.start(None)
    detector.save(config.run_dir / "detector")
    register_trained(tracked, config.run_dir / "detector")
    tracked.close()
    return config.run_dir / "detector"


@pytest.mark.parametrize("by_fmad", [True, False])
def test_a_version_is_served_over_http(
    by_fmad: bool,
    make_detector: Callable[..., Detector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(name="first", output=str(tmp_path / "runs"), tracking=TrackingConfig(model_name="served"))
    detector = make_detector((1.0,))
    good = [picture(seed) for seed in range(10)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in good])).permute(0, 3, 1, 2).contiguous()
    detector = make_detector((detector(pixels).scores.median().item(),))
    folder = registered(config, detector)
    said = capfd.readouterr()
    assert (said.out + said.err).splitlines() == ["registered models:/served/1 (alias candidate)"]  # MLflow is silent
    server = ModelServer("models:/served/1", tracking_uri(config), tmp_path / "serve.log", by_fmad)
    try:
        _check_answers(server, Detector.load(folder), pixels, [sent(encoded(image)) for image in good])
    finally:
        server.stop()
    _check_changed_files(tmp_path, tracking_uri(config))


def _check_answers(server: ModelServer, detector: Detector, pixels: torch.Tensor, images: list[str]) -> None:
    found = detector(pixels)
    for form in ({"dataframe_split": table(images)}, {"dataframe_records": [{"image": image} for image in images]}):
        rows = server.ask(form)["predictions"]
        assert [row["score"] for row in rows] == pytest.approx(found.scores.tolist(), rel=1e-4)
        assert [row["anomalous"] for row in rows] == found.anomalous.tolist()
        assert 0 < sum(row["anomalous"] for row in rows) < 10
    odd = odd_images()
    mixed = [images[0], *(bad for bad, _ in odd.values()), images[1]]
    rows = server.ask({"dataframe_split": table(mixed)})["predictions"]
    assert [row["error"] is None for row in rows] == [True, *[False] * len(odd), True]
    for row, (_, message) in zip(rows[1:-1], odd.values(), strict=True):
        assert message in row["error"]
        assert row["score"] is None
    params = {"sensitivity": 1.0, "threshold": "global", "maps": True}
    rows = server.ask({"dataframe_split": table(images[:2]), "params": params})["predictions"]
    assert [(row["anomalous"], row["threshold"]) for row in rows] == [(True, None)] * 2  # minus infinity is no JSON
    assert all(row["map"] for row in rows)
    wrong_column = {"dataframe_records": [{"picture": images[0]}]}
    for bad in ({"dataframe_split": table(images[:1]), "params": {"sensitivity": 3.0}}, wrong_column, {}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.ask(bad)
        assert caught.value.code == 400
    assert server.alive()


def _check_changed_files(root: Path, tracking: str) -> None:
    """Who may write the stored files, but not the registry, is noticed however well the files fit together."""
    (stored,) = (root / "runs" / "mlartifacts").rglob(SPEC_NAME)
    spec = json.loads(stored.read_text())
    Detector.load("models:/served@candidate")
    again = Detector.load(stored.parent)
    again.spec = again.spec.model_copy(update={"seed": spec["seed"] + 1})
    again.save(stored.parent)
    refused = r"served/1: artifacts/detector/detector\.json not what was registered"
    for uri in ("models:/served/1", "models:/served@candidate"):
        with pytest.raises(UserError, match=refused.replace("/1", "(/1|@candidate)")):
            Detector.load(uri)
    with pytest.raises(UserError, match=refused):  # what `mlflow models serve` does
        mlflow.pyfunc.load_model("models:/served/1")

    ran = root / "ran"
    code = stored.parents[2] / "pyfunc.py"
    code.write_text(f"open({str(ran)!r}, 'w').close()\n{code.read_text()}")
    command = [
        sys.executable,
        "-m",
        "fmad_dist.cli",
        "serve",
        "--model",
        "models:/served/1",
        "--tracking-uri",
        tracking,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert "detector.json, pyfunc.py not what was registered" in ended.stderr
    assert not ran.exists()
