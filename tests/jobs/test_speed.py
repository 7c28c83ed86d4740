"""The speed of an evaluation: sums, rates and the marked section of the report."""

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmad_dist.jobs.speed import PHASES, ProcessSpeed, Speed, Stopwatch, speed_of, write_speed
from fmad_dist.metrics.compute import compute_results
from fmad_dist.report.html import write_report
from tests.support.toy_states import three_classes

CPU = torch.device("cpu")


def process(num_images: int, *seconds: float, host: int = 0, device: int = 0) -> ProcessSpeed:
    return ProcessSpeed(num_images, dict(zip(PHASES, seconds, strict=True)), host, device)


@pytest.fixture
def speed() -> Speed:
    """Two processes: 30 images in 5 s and 10 images in 3 s."""
    processes = [process(30, 1, 1, 1, 1, 1, host=200), process(10, 1, 2, 0, 0, 0, host=100, device=7)]
    return speed_of(processes, 0.5, CPU)


def test_rates_and_peaks(speed: Speed) -> None:
    assert speed.num_images == 40
    assert speed.images_per_s == 40 / 5
    assert speed.images_per_s_of_a_process == 40 / 8
    assert speed.seconds == {"read": 2, "features": 3, "score": 1, "metrics": 1, "save": 1}
    assert (speed.host_bytes, speed.device_bytes) == (200, 7)


def test_phases_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only phases move: reading takes 2, scoring 3."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch(CPU)

    def batches() -> Iterator[str]:
        nonlocal now
        for batch in "ab":
            now += 2.0
            yield batch

    seen = []
    for batch in watch.reading(batches()):
        seen.append(batch)
        with watch.phase("score"):
            now += 3.0
        now += 100.0
        watch.num_images += 4
    found = watch.stop()
    assert seen == ["a", "b"]
    assert found.seconds == {"read": 4.0, "features": 0.0, "score": 6.0, "metrics": 0.0, "save": 0.0}
    assert found.num_images == 8
    assert 10 << 20 < found.host_bytes < 1 << 40
    assert found.device_bytes == 0


def test_the_file_has_all_of_it(speed: Speed, tmp_path: Path) -> None:
    write_speed(speed, tmp_path)
    body = json.loads((tmp_path / "speed.json").read_text())
    assert body["images_per_s"] == 8.0
    assert [one["num_images"] for one in body["processes"]] == [30, 10]
    assert body["processes"][1]["seconds"]["features"] == 2


def test_nothing_left_to_score_is_no_rate(tmp_path: Path) -> None:
    idle = speed_of([process(0, 0, 0, 0, 0, 0)], 1.0, CPU)
    assert math.isnan(idle.images_per_s)
    write_speed(idle, tmp_path)
    assert json.loads((tmp_path / "speed.json").read_text())["images_per_s"] is None
    page = report(tmp_path, idle)
    assert "0 images were scored since the last start" in page
    assert not re.search(r"\bnan\b", page)


def test_only_the_marked_section_of_the_report_is_measured(speed: Speed, tmp_path: Path) -> None:
    fast, slow = report(tmp_path, speed_of([process(36, 1, 1, 1, 1, 1)], 0.1, CPU)), report(tmp_path, speed)
    assert fast != slow
    cut = [re.sub(r"<!-- measured -->.*<!-- /measured -->", "", page, flags=re.DOTALL) for page in (fast, slow)]
    assert cut[0] == cut[1]
    assert "<dd>8.0</dd>" in slow
    assert "on 2\n    processes" in slow


def report(folder: Path, speed: Speed) -> str:
    state = three_classes()
    return write_report(
        compute_results(state), state, folder / "r.html", title="Toy", facts={}, speed=speed
    ).read_text()
