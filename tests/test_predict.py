import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.images import square_rgb
from fmad_dist.predict import COLUMNS, overlay, predict
from fmad_dist.storage import Store

SIDE = 64


def save(path: Path, seed: int, shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eleven readable images, more than one batch, and two files that are none."""
    folder = tmp_path / "source"
    for number in range(9):
        save(folder / f"{number}.png", number)
    save(folder / "below" / "deep.JPG", 20, (100, 80, 3))
    save(folder / "grey.tif", 21, (50, 70))
    (folder / "3-cut.png").write_bytes((folder / "3.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image")
    return folder


def rows_of(out: Path | str) -> list[dict[str, str]]:
    text = Store(out).read("scores.csv").decode()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    return list(csv.DictReader(io.StringIO(text)))


def test_every_image_gets_a_row(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    summary = predict(tiny_detector, str(source), str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    names = [row["image"] for row in rows]
    assert names == sorted([*(f"{n}.png" for n in range(9)), "3-cut.png", "below/deep.JPG", "grey.tif"])
    for row in rows:
        if row["image"] == "3-cut.png":
            continue
        pixels = np.asarray(square_rgb(Image.open(source / row["image"]), SIDE, "x"))
        found = tiny_detector(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous())
        assert float(row["score"]) == pytest.approx(found.scores.item(), rel=1e-4)
        assert float(row["threshold"]) == pytest.approx(found.thresholds.item())
        assert row["class"] == tiny_detector.spec.class_names[found.classes.item()]
        assert row["decision"] == ("anomalous" if float(row["score"]) > float(row["threshold"]) else "normal")
        assert row["error"] == ""
    assert summary.num_images == 12
    assert summary.num_anomalous == sum(row["decision"] == "anomalous" for row in rows)


def test_decisions_are_of_both_kinds(make_detector: Callable[..., Detector], source: Path, tmp_path: Path) -> None:
    detector = make_detector((1.0,))
    predict(detector, str(source), str(tmp_path / "first"))
    scores = sorted(float(row["score"]) for row in rows_of(tmp_path / "first") if row["score"])
    summary = predict(make_detector((scores[5],)), str(source), str(tmp_path / "second"))
    assert summary.num_anomalous in (5, 6)  # scores are rounded in the table


def test_an_unreadable_file_is_reported_and_stops_nothing(
    tiny_detector: Detector, source: Path, tmp_path: Path
) -> None:
    summary = predict(tiny_detector, str(source), str(tmp_path / "out"))
    row = next(row for row in rows_of(tmp_path / "out") if row["image"] == "3-cut.png")
    assert row["decision"] == "unreadable"
    assert row["score"] == row["threshold"] == row["class"] == ""
    assert "cannot be decoded" in row["error"]
    assert str(source / "3-cut.png") in row["error"]
    assert summary.unreadable == (row["error"],)
    assert not (tmp_path / "out" / "maps" / "3-cut.png.png").exists()


def test_pictures_have_the_right_size(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, str(source), str(tmp_path / "out"))
    for name in ("0.png", "below/deep.JPG", "grey.tif"):
        heat = Image.open(tmp_path / "out" / "maps" / f"{name}.png")
        assert (heat.size, heat.mode) == ((32, 32), "I;16")
        picture = Image.open(tmp_path / "out" / "overlays" / f"{name}.png")
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


def test_32768_is_the_threshold(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, str(source), str(tmp_path / "out"))
    pixels = np.asarray(Image.open(source / "0.png"))
    found = tiny_detector(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous())
    heat = np.asarray(Image.open(tmp_path / "out" / "maps" / "0.png.png")).astype(int)
    expected = np.clip(found.maps[0].numpy() / found.thresholds.item() * 32768, 0, 65535)
    assert np.abs(heat - expected).max() <= 16


def test_every_image_unreadable_is_still_an_answer(tiny_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"")
    summary = predict(tiny_detector, str(tmp_path / "source"), str(tmp_path / "out"))
    assert (summary.num_images, summary.num_anomalous, len(summary.unreadable)) == (1, 0, 1)
    assert rows_of(tmp_path / "out")[0]["decision"] == "unreadable"


def test_an_uncalibrated_detector_can_predict(
    make_detector: Callable[..., Detector], source: Path, tmp_path: Path
) -> None:
    summary = predict(make_detector((1.0,), calibration=None), str(source), str(tmp_path / "out"))
    assert summary.num_anomalous == 0
    assert {row["decision"] for row in rows_of(tmp_path / "out")} == {"normal", "unreadable"}


def test_any_filesystem_will_do(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    for name in ("0.png", "below/deep.JPG"):
        Store("memory://predict/in").write(name, (source / name).read_bytes())
    predict(tiny_detector, "memory://predict/in", "memory://predict/out")
    predict(tiny_detector, str(source), str(tmp_path / "out"))
    remote = {row["image"]: row for row in rows_of("memory://predict/out")}
    local = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert float(remote["0.png"]["score"]) == pytest.approx(float(local["0.png"]["score"]), rel=1e-4)
    names = Store("memory://predict/out").list()
    assert {"maps/below/deep.JPG.png", "overlays/below/deep.JPG.png", "scores.csv"} <= set(names)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_images_is_an_error(tiny_detector: Detector, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images found") as caught:
        predict(tiny_detector, str(tmp_path / name), str(tmp_path / "out"))
    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["source", "source/out", "source/"])
def test_results_inside_the_source_are_refused(tiny_detector: Detector, source: Path, tmp_path: Path, out: str) -> None:
    """They would be predicted the next time."""
    with pytest.raises(UserError, match="lies inside the source"):
        predict(tiny_detector, str(source), f"{tmp_path}/{out}")


def test_results_inside_the_source_are_refused_however_they_are_written(
    tiny_detector: Detector, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="lies inside the source"):
        predict(tiny_detector, str(source), "source/out")


def test_a_neighbour_with_a_longer_name_is_not_inside(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, str(source), f"{source}-out")
    assert len(rows_of(f"{source}-out")) == 12


def test_results_are_repeatable(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        predict(tiny_detector, str(source), str(tmp_path / name))
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (tmp_path / "two" / "scores.csv").read_bytes()


def test_overlays_show_the_image_where_nothing_is_hot() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(overlay(pixels, np.full((8, 8), 0.4))), pixels)
    half = np.zeros((8, 8))
    half[:, 4:] = 2.0
    shown = np.asarray(overlay(pixels, half)).astype(int)
    np.testing.assert_array_equal(shown[:, :24], pixels[:, :24])
    assert np.abs(shown - pixels)[:, 40:].mean() > 30
