"""A report is written again from the state alone, with the same bytes, and the folder stays a finished evaluation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.cli import app
from fmad_dist.detector import Detector
from fmad_dist.evaluation.evaluate import EvaluationJob, EvaluationOptions, run_evaluation
from fmad_dist.evaluation.report import report_again
from fmad_dist.report.result_files import EVALUATION_FILES
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import changed_files, read_stamp, write_stamp


@pytest.fixture(scope="module")
def evaluated(
    make_detector: Callable[..., Detector], tiny_url: str, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationOptions:
    """A finished evaluation, whose maps are elsewhere."""
    folder = tmp_path_factory.mktemp("evaluated")
    make_detector((1.0, 2.0, 3.0)).save(folder / "model")
    options = EvaluationOptions(str(folder / "model"), (tiny_url,), str(folder / "out"), maps=str(folder / "maps"))
    run_evaluation(options, World())
    return options


@pytest.fixture
def out(evaluated: EvaluationOptions, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated.out, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_unchanged_folder_keeps_every_byte(out: Path) -> None:
    before = contents(out)
    report_again(out)
    assert contents(out) == before
    assert "fmad evaluation" in before["report.html"].decode()
    assert "&#34;backbone&#34;" in before["report.html"].decode()  # the detector's settings are in it


def test_lost_and_changed_results_come_back(out: Path) -> None:
    before = contents(out)
    (out / "report.html").unlink()
    (out / "results.json").write_text("{}")
    for name in ("results.csv", "scores.csv", "results.md", "results.tex"):
        (out / name).write_text("changed")
    report_again(out)
    assert contents(out) == before


def test_the_evaluation_is_still_finished(
    evaluated: EvaluationOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EvaluationJob, "score", lambda *_: pytest.fail("something was scored"))
    monkeypatch.setattr("fmad_dist.evaluation.report.write_results", _with_a_new_field)
    report_again(Path(evaluated.out))  # as another version of fmad would
    assert changed_files(Store(evaluated.out), read_stamp(Store(evaluated.out))) == []  # type: ignore[arg-type]
    found = run_evaluation(evaluated, World())
    assert found == {"new": True}
    assert "nothing is left to do" in capsys.readouterr().out
    monkeypatch.undo()
    report_again(Path(evaluated.out))


def _with_a_new_field(results: object, out: Path) -> None:
    Store(out).write("results.json", json.dumps({"new": True}).encode())


@pytest.mark.parametrize("name", ["state.safetensors", "settings.json", "speed.json"])
def test_what_a_report_is_made_from_must_be_unchanged(out: Path, name: str) -> None:
    (out / name).write_bytes((out / name).read_bytes()[:-1])
    before = contents(out)
    with pytest.raises(UserError, match=rf"{name}: changed after it was written, or is missing; evaluate again"):
        report_again(out)
    (out / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: changed after it was written, or is missing; evaluate again"):
        report_again(out)
    assert contents(out) == {key: data for key, data in before.items() if key != name}


def test_an_evaluation_of_an_earlier_version_has_a_report_without_settings(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "settings.json").unlink()
    stamp = read_stamp(Store(out))
    assert stamp is not None
    write_stamp(Store(out), stamp.key, stamp.facts, ("state.safetensors", *EVALUATION_FILES))
    report_again(out)
    assert "&#34;backbone&#34;" not in (out / "report.html").read_text()
    assert "its report has no settings of the detector any more" in capsys.readouterr().err


def test_the_command_shows_the_table_and_refuses_other_folders(out: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["report", str(out)])
    assert told.exit_code == 0, told.output
    assert "tiny/bolt" in told.stdout
    assert f"report: {out / 'report.html'}" in told.stdout
    (out / "stamp.json").unlink()
    for folder in (out, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"{folder}: holds no finished evaluation"):
            report_again(folder)
