"""The command as users type it: what it writes, says and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fmad_dist.base.errors import UserError
from fmad_dist.cli import app
from fmad_dist.config.files import dump_config
from fmad_dist.config.run import DataConfig, RunConfig
from fmad_dist.detector import Detector
from fmad_dist.scoring.calibration import fit_thresholds
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture, split_normals
from tests.support.small_parts import SIDE, MakeDetector, save_image

CLASSES = ("tiny/bolt", "tiny/nut", "tiny/washer")


@pytest.fixture(scope="module")
def trained(make_detector: MakeDetector, tiny_mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose detector was trained with a third of the normals held out. Read only."""
    run = tmp_path_factory.mktemp("run")
    detector = make_detector((1.0, 2.0, 3.0), class_names=CLASSES, manifest_digests=tiny_mixture.digests)
    detector.save(run / "detector")
    (run / "config.yaml").write_text(dump_config(RunConfig(data=DataConfig(holdout=0.3))))
    return run


def fmad(*words: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def refused(*words: object) -> str:
    done = fmad(*words)
    assert isinstance(done.exception, UserError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_thresholds_of_the_held_out_images_at_another_rate(
    trained: Path, tiny_url: str, tiny_mixture: Mixture, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    words = ("--model", trained, "--data", tiny_url, "--false-alarm-rate", 0.2, "--out", tmp_path / "new")
    done = fmad(*words)
    assert done.exit_code == 0, done.output
    held_out = split_normals(tiny_mixture, 0.3).held_out
    source, old = ImageSource(tiny_mixture, SIDE), Detector.load(trained)
    scores = np.concatenate([old(source.read(row)[None]).scores.numpy() for row in held_out.tolist()])
    wanted = fit_thresholds(scores, tiny_mixture.class_numbers[held_out], 3, 0.2)
    found = Detector.load(tmp_path / "new").spec.calibration
    assert found is not None
    assert found.thresholds == pytest.approx(wanted.thresholds)
    assert found.num_images == wanted.num_images == (2, 2, 4)
    assert found.given == tiny_mixture.digests
    assert f"tiny/bolt        2 images, threshold {found.thresholds[0]:.4g}, was 1\n" in done.stdout
    assert f"all              8 images, threshold {found.global_threshold:.4g}, was 1.5\n" in done.stdout
    assert "fewer than 5 images of tiny/bolt, tiny/nut, tiny/washer: their thresholds assume" in done.stderr
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert "new: not empty; choose another --out, or give --overwrite" in refused(*words)
    assert fmad(*words, "--overwrite").exit_code == 0


def test_what_the_training_held_out_is_found_beside_the_model_or_named(
    trained: Path, tiny_url: str, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(trained / "detector", tmp_path / "alone"))
    words = ("--model", alone, "--data", tiny_url)
    assert "trained the model; give --run" in refused(*words, "--out", tmp_path / "a")
    assert fmad(*words, "--run", trained, "--out", tmp_path / "b").exit_code == 0
    (alone / "lineage.json").write_text(json.dumps({"config": {"data": {"holdout": 0.3}}}))  # a downloaded version
    assert fmad(*words, "--out", tmp_path / "c").exit_code == 0
    assert Detector.load(tmp_path / "b").spec == Detector.load(tmp_path / "c").spec


def test_pictures_of_one_class(trained: Path, tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / "photos" / f"{number}.png", number)
    words = ("--model", trained, "--source", tmp_path / "photos", "--class", "nut", "--out", tmp_path / "new")
    assert "--strict: no images of tiny/bolt, tiny/washer" in refused(*words, "--strict")
    done = fmad(*words)
    assert done.exit_code == 0, done.output
    found = Detector.load(tmp_path / "new").spec.calibration
    assert found is not None
    assert found.num_images == (4, 4, 4)  # the others' are those of training
    assert (found.thresholds[0], found.thresholds[2], found.global_threshold) == (1.0, 3.0, 1.5)
    assert found.thresholds[1] != 2.0
    assert "tiny/bolt        4 images, threshold 1, no images given, so it stays\n" in done.stdout
    assert "all             12 images, threshold 1.5, stays\n" in done.stdout


def test_unreadable_pictures_are_counted_and_bounded(trained: Path, tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / "photos" / "nut" / f"{number}.png", number)
    (tmp_path / "photos" / "nut" / "1.png").write_bytes(b"none")
    words = ("--model", trained, "--source", tmp_path / "photos", "--out", tmp_path / "new")
    assert "1 images cannot be read and --max-bad allows 0; " in refused(*words, "--max-bad", 0)
    assert not (tmp_path / "new" / "detector.json").exists()
    done = fmad(*words)
    assert "1 images were left out; " in done.stderr
    assert "1.png" in done.stderr
    assert Detector.load(tmp_path / "new").spec.calibration.num_images == (4, 3, 4)  # type: ignore[union-attr]


def test_what_makes_no_sense_is_refused(trained: Path, tiny_url: str, tmp_path: Path) -> None:
    model, out = ("--model", trained), ("--out", tmp_path / "new")
    assert "no normal images found" in refused(*model, *out)
    assert "--split all: choose from train, val, test" in refused(*model, *out, "--data", tiny_url, "--split", "all")
    assert "--class: is of the pictures of --source" in refused(*model, *out, "--data", tiny_url, "--class", "nut")
    same = refused(*model, "--data", tiny_url, "--out", trained / "detector", "--overwrite")
    assert "holds the model itself, which stays as it is; choose another folder" in same
    assert "no detector here" in refused("--model", tmp_path / "none", *out, "--data", tiny_url)
    assert fmad(*model, *out, "--data", tiny_url, "--false-alarm-rate", 0.7).exit_code == 2
