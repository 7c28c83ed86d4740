"""What follows an evaluation, where a user starts it and in the ranks of a launcher."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fmad_dist.base.world import World
from fmad_dist.cli import app
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.evaluate import EvaluationOptions


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose evaluation is logged; data, summary and log are stand-ins."""
    models: list[str] = []
    monkeypatch.setattr("fmad_dist.stream.mixture.Mixture.load", lambda urls: SimpleNamespace(digests={}))
    monkeypatch.setattr("fmad_dist.report.result_files.print_summary", lambda folder: None)
    monkeypatch.setattr("fmad_dist.registry.evidence.log_evaluation", lambda model, *_: models.append(model))
    return models


def evaluate(model: Path, *words: str) -> None:
    base = ["evaluate", "--model", str(model), "--data", "m", "--out", str(model / "out")]
    assert CliRunner().invoke(app, [*base, *words], catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    ("words", "logged"),
    [([], True), (["--protocol", "ader"], False), (["--protocol", "fmad-2026"], False), (["scorer.steps=9"], False)],
)
def test_only_the_models_own_protocol_is_logged_as_its_quality(
    words: list[str],
    logged: bool,
    kept: list[str],
    make_detector: Callable[..., Detector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The detector's own protocol has maps of 32 pixels, so the default by name is another one."""
    make_detector((0.5, 1.0, 2.0)).save(tmp_path)
    started: list[EvaluationOptions] = []
    monkeypatch.setattr("fmad_dist.launch.processes.launch", lambda job, options, *_: started.append(options))
    evaluate(tmp_path, *words, "--processes", "2")
    assert kept == ([str(tmp_path)] if logged else [])
    assert (started[0].protocol is not None) == ("--protocol" in words)


def test_ranks_of_a_launcher_do_the_work_and_the_main_one_what_follows(
    kept: list[str], make_detector: Callable[..., Detector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_detector((0.5, 1.0, 2.0)).save(tmp_path)
    worlds: list[World] = []
    monkeypatch.setattr(
        "fmad_dist.evaluation.evaluate.run_evaluation", lambda options, world: worlds.append(world) or options
    )
    monkeypatch.setattr("fmad_dist.launch.processes.ending_together", lambda world: nullcontext())  # has no store here
    for rank in (1, 0):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "GROUP_RANK": 0}.items():
            monkeypatch.setenv(name, str(value))
        evaluate(tmp_path)
        assert kept == [str(tmp_path)] * (rank == 0)
    assert worlds == [World(1, 2, 1, 0), World(0, 2, 0, 0)]
    ended: Any = CliRunner().invoke(
        app, ["evaluate", "--model", str(tmp_path), "--data", "m", "--out", "o", "--processes", "2"]
    )
    assert "--processes: the launcher decides here; use its --num_processes" in str(ended.exception)
