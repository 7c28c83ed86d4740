"""What fmad 0.1 wrote is still read: a dataset, two runs with their checkpoints and detectors, an evaluation, a
prediction, a comparison and the record of a follower, made by its commands on two classes of 32 px images. The weights
of the networks are zeros, which compress well."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmad_dist.cli import main
from fmad_dist.detector import Detector
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.view.results import open_results

ARCHIVE = Path(__file__).with_name("fmad-0.1.tar.xz")
EVALUATE = ("evaluate", "--model", "runs/run", "--data", "data", "--processes", "1")
PREDICT = ("predict", "--model", "runs/run", "--source", "images/disc/test", "--processes", "1")
NOTHING_LEFT = "nothing is left to do"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with the files of 0.1, a copy for each test."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fmad(*words: str) -> None:
    """Run a command in this process; it must not fail."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 0


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_is_clean_and_converting_it_again_writes_nothing(old: Path) -> None:
    before = bytes_of(old / "data")
    fmad("data", "lint", "data")
    fmad(
        "data",
        "convert",
        "--layout",
        "mvtec",
        "--dataset",
        "old",
        "--source",
        "images",
        "--out",
        "data",
        "--size",
        "32",
    )
    assert bytes_of(old / "data") == before


def test_a_detector_scores_as_it_did(old: Path) -> None:
    detector = Detector.load("runs/run")
    with open(old / "predictions" / "scores.csv") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    for name, row in rows.items():
        pixels = np.asarray(Image.open(old / "images/disc/test" / name))
        found = detector(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        assert float(found.scores[0]) == pytest.approx(float(row["score"]), rel=1e-5)
        assert detector.spec.class_names[int(found.classes[0])] == row["class"]


@pytest.mark.parametrize("run", ["run", "deviating"])
def test_a_checkpoint_becomes_the_same_detector(old: Path, run: str) -> None:
    """Of a fusion and of a deviation, which keep what they were fitted to in different ways."""
    assert Checkpoints(f"runs/{run}/checkpoints").steps() == [1, 2]
    fmad("export", "--run", f"runs/{run}", "--out", "exported")
    was, now = Detector.load(f"runs/{run}"), Detector.load("exported")
    assert was.spec.class_names == now.spec.class_names
    assert was.state_dict().keys() == now.state_dict().keys()
    for name in ("class_means", "whitening.mean"):
        if name in was.state_dict():
            torch.testing.assert_close(was.state_dict()[name], now.state_dict()[name])


@pytest.mark.slow
def test_a_training_goes_on(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fmad("train", "--config", "runs/run/config.yaml", "--processes", "1", "train.steps=3")
    assert "resumed run at step 2" in capfd.readouterr().out
    assert Checkpoints("runs/run/checkpoints").steps() == [2, 3]


def test_an_evaluation_is_finished(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = bytes_of(old / "results")
    fmad(*EVALUATE, "--out", "results")
    assert NOTHING_LEFT in capfd.readouterr().out
    assert bytes_of(old / "results") == before


def test_an_evaluation_gives_the_same_report_again(old: Path) -> None:
    before = json.loads((old / "results" / "results.json").read_text())
    fmad("report", "results")
    assert json.loads((old / "results" / "results.json").read_text()) == before


def test_a_prediction_is_shown_and_known_for_one(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its images have other absolute paths here, so it counts as a prediction of other images."""
    assert open_results("predictions", (), None).columns.classes == ["old/disc"] * 4
    before = bytes_of(old / "predictions")
    with pytest.raises(SystemExit) as ended:
        main([*PREDICT, "--out", "predictions"])
    assert ended.value.code == 2
    assert "predictions: holds a prediction with images 4 (bc8078cdf9d1) instead of 4 (" in capsys.readouterr().err
    assert bytes_of(old / "predictions") == before


def test_a_comparison_is_finished(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(old / "compared", old / "was")
    words = ("compare", "--config", "runs/run/config.yaml", "--scorers", "inversion,endpoint", "--processes", "1")
    fmad(*words, "--out", "compared")
    assert NOTHING_LEFT in capfd.readouterr().out
    assert bytes_of(old / "compared") == bytes_of(old / "was")


def test_a_followed_run_is_done(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (old / "runs/run/follow.jsonl").read_bytes()
    fmad("follow", "--run", "runs/run", "--once", "--processes", "1", "--per-class", "2")
    assert "the training is complete" in capfd.readouterr().out
    assert (old / "runs/run/follow.jsonl").read_bytes() == before
