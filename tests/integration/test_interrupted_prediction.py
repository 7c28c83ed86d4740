"""Ctrl-C in a prediction: one line and exit code 130, in one process and with ranks; the same command then goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fmad_dist.detector.detector import Detector
from tests.integration.jobs import LAUNCH_SECONDS
from tests.prediction.scored import save

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c(tmp_path: Path, make_detector: Callable[..., Detector], processes: str) -> None:
    make_detector((1.0, 2.0)).save(tmp_path / "detector")
    save(tmp_path / "source" / "0.png", 0)
    for number in range(1, 3000):
        os.link(tmp_path / "source" / "0.png", tmp_path / "source" / f"{number}.png")
    out = tmp_path / "out"
    words = ["--model", str(tmp_path / "detector"), "--source", str(tmp_path / "source"), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fmad_dist.cli", "predict", *words, "--processes", processes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not (out / "maps").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=LAUNCH_SECONDS)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said, said
    assert [line for line in said.splitlines() if not line.startswith("predict")] == ["stopped by Ctrl-C"]
