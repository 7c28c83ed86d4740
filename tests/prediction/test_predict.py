"""What a prediction says about images, and the files it writes."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fmad_dist.base.errors import UserError
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.images.codec import square_rgb
from fmad_dist.prediction.results import COLD, SCHEMA, Pictures, overlay
from fmad_dist.scoring.density import DensityConfig
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.storage import Store
from tests.prediction.scored import SIDE, predict, rows_of


def test_every_image_gets_a_row(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    summary = predict(tiny_detector, source, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "scores.parquet").equals(SCHEMA)
    rows = rows_of(tmp_path / "out")
    names = [row["image"] for row in rows]
    assert names == sorted([*(f"{n}.png" for n in range(9)), "3-cut.png", "below/deep.JPG", "grey.tif"])
    for row in rows:
        assert row["url"] == str(source / row["image"])
        assert (row["start"], row["num_bytes"]) == (0, (source / row["image"]).stat().st_size)
        if row["image"] == "3-cut.png":
            continue
        pixels = np.asarray(square_rgb(Image.open(source / row["image"]), SIDE, "x"))
        found = tiny_detector(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous())
        assert row["score"] == pytest.approx(found.scores.item(), rel=1e-4)
        assert row["normalised"] == pytest.approx(found.normalised.item(), rel=1e-4)
        assert row["threshold"] == pytest.approx(found.thresholds.item())
        assert row["class"] == tiny_detector.spec.class_names[found.classes.item()]
        assert row["decision"] == ("anomalous" if row["score"] > row["threshold"] else "normal")
        assert row["error"] == ""
    assert summary.num_images == 12
    assert summary.num_anomalous == sum(row["decision"] == "anomalous" for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("scorer", [InversionConfig(), DensityConfig(steps=2, probes=3)], ids=["inversion", "density"])
def test_a_compiled_network_finds_the_same(
    make_detector: Callable[..., Detector], source: Path, tmp_path: Path, scorer: ScorerConfig
) -> None:
    from torch._dynamo.utils import counters

    detector = make_detector((1.0, 2.0), scorer=scorer)
    summary = predict(detector, source, tmp_path / "plain")
    counters.clear()
    assert predict(detector, source, tmp_path / "compiled", compiled=True) == summary
    assert counters["stats"]["unique_graphs"] == len(detector.network.blocks)
    for row, wanted in zip(rows_of(tmp_path / "compiled"), rows_of(tmp_path / "plain"), strict=True):
        for name in ("score", "normalised", "threshold"):
            found, expected = row.pop(name), wanted.pop(name)
            assert (found is None) == (expected is None)
            assert found is None or found == pytest.approx(expected, rel=1e-4)
        assert row == wanted


def test_the_csv_says_the_same(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "out")
    copied = list(csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text())))
    for row, copy in zip(rows_of(tmp_path / "out"), copied, strict=True):
        assert list(copy) == SCHEMA.names
        assert [copy[name] for name in ("image", "decision", "class")] == [
            row[name] or "" for name in ("image", "decision", "class")
        ]
        assert (float(copy["score"]) if copy["score"] else None) == (row["score"] and pytest.approx(row["score"]))


def test_decisions_are_of_both_kinds(make_detector: Callable[..., Detector], source: Path, tmp_path: Path) -> None:
    detector = make_detector((1.0,))
    predict(detector, source, tmp_path / "first")
    scores = sorted(row["score"] for row in rows_of(tmp_path / "first") if row["score"] is not None)
    summary = predict(make_detector((scores[5],)), source, tmp_path / "second")
    assert summary.num_anomalous == 5


def test_an_unreadable_file_is_reported_and_stops_nothing(
    tiny_detector: Detector, source: Path, tmp_path: Path
) -> None:
    summary = predict(tiny_detector, source, tmp_path / "out")
    row = next(row for row in rows_of(tmp_path / "out") if row["image"] == "3-cut.png")
    assert row["decision"] == "unreadable"
    assert row["score"] is row["threshold"] is row["class"] is None
    assert "cannot be decoded" in row["error"]
    assert str(source / "3-cut.png") in row["error"]
    assert (summary.num_unreadable, summary.first_error) == (1, row["error"])
    assert not (tmp_path / "out" / "maps" / "3-cut.png.png").exists()


def test_pictures_have_the_right_size(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "out")
    for name in ("0.png", "below/deep.JPG", "grey.tif"):
        heat = Image.open(tmp_path / "out" / "maps" / f"{name}.png")
        assert (heat.size, heat.mode) == ((32, 32), "I;16")
        picture = Image.open(tmp_path / "out" / "overlays" / f"{name}.png")
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


def test_maps_are_on_the_normalised_scale(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "out")
    pixels = np.asarray(Image.open(source / "0.png"))
    found = tiny_detector(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous())
    heat = np.asarray(Image.open(tmp_path / "out" / "maps" / "0.png.png")).astype(int)
    expected = np.clip(found.relative_maps[0].numpy() * 65536, 0, 65535)
    assert np.abs(heat - expected).max() <= 16


def test_sensitivity_moves_decisions_and_nothing_else(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "calibrated")
    normalised = sorted(row["normalised"] for row in rows_of(tmp_path / "calibrated") if row["score"] is not None)
    between = (normalised[3] + normalised[4]) / 2  # so that seven of eleven are anomalous
    summary = predict(tiny_detector, source, tmp_path / "other", sensitivity=1.0 - between)
    assert summary.num_anomalous == 7
    for row, other in zip(rows_of(tmp_path / "calibrated"), rows_of(tmp_path / "other"), strict=True):
        for name in ("image", "score", "normalised", "class"):
            assert row[name] == other[name]
        if row["score"] is not None:
            assert (row["decision"] == "anomalous") == (row["normalised"] > 0.5)
            assert (other["decision"] == "anomalous") == (row["normalised"] > between)
    with pytest.raises(UserError, match=r"holds a prediction with sensitivity 0\.5 instead of"):
        predict(tiny_detector, source, tmp_path / "calibrated", sensitivity=1.0 - between)


def test_one_threshold_for_all_classes(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "own")
    predict(tiny_detector, source, tmp_path / "one", threshold="global", sensitivity=0.4)
    found = tiny_detector.with_threshold("global").with_sensitivity(0.4)
    for row, own in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "own"), strict=True):
        assert row["score"] == own["score"]
        if row["error"] == "":
            assert row["threshold"] == pytest.approx(limit_of(found)) != own["threshold"]
            assert row["decision"] == ("anomalous" if row["score"] > row["threshold"] else "normal")
    with pytest.raises(UserError, match="holds a prediction with threshold class instead of global"):
        predict(tiny_detector, source, tmp_path / "own", threshold="global")


def limit_of(detector: Detector) -> float:
    """The threshold that every image has."""
    return float(detector(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)).thresholds)


def test_every_image_unreadable_is_still_an_answer(tiny_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"")
    summary = predict(tiny_detector, tmp_path / "source", tmp_path / "out")
    assert (summary.num_images, summary.num_anomalous, summary.num_unreadable) == (1, 0, 1)
    assert rows_of(tmp_path / "out")[0]["decision"] == "unreadable"


def test_an_uncalibrated_detector_can_predict(
    make_detector: Callable[..., Detector], source: Path, tmp_path: Path
) -> None:
    summary = predict(make_detector((1.0,), calibration=None), source, tmp_path / "out")
    assert summary.num_anomalous == 0
    rows = rows_of(tmp_path / "out")
    assert {row["decision"] for row in rows} == {"normal", "unreadable"}
    assert all(np.isnan(row["normalised"]) for row in rows if row["score"] is not None)
    assert np.asarray(Image.open(tmp_path / "out" / "maps" / "0.png.png")).max() == 0


def test_any_filesystem_will_do(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    for name in ("0.png", "below/deep.JPG"):
        Store("memory://predict/in").write(name, (source / name).read_bytes())
    predict(tiny_detector, "memory://predict/in", "memory://predict/out")
    predict(tiny_detector, source, tmp_path / "out")
    remote = {row["image"]: row for row in rows_of("memory://predict/out")}
    local = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert remote["0.png"]["score"] == pytest.approx(local["0.png"]["score"], rel=1e-4)
    assert remote["below/deep.JPG"]["url"] == "memory://predict/in/below/deep.JPG"
    names = Store("memory://predict/out").list()
    assert {"maps/below/deep.JPG.png", "overlays/below/deep.JPG.png", "scores.parquet"} <= set(names)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_images_is_an_error(tiny_detector: Detector, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images found") as caught:
        predict(tiny_detector, tmp_path / name, tmp_path / "out")
    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["source", "source/out", "source/"])
def test_results_inside_the_source_are_refused(tiny_detector: Detector, source: Path, tmp_path: Path, out: str) -> None:
    """They would be predicted the next time."""
    with pytest.raises(UserError, match="lies inside the source"):
        predict(tiny_detector, source, f"{tmp_path}/{out}")


def test_results_inside_the_source_are_refused_however_they_are_written(
    tiny_detector: Detector, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="lies inside the source"):
        predict(tiny_detector, source, "source/out")


def test_a_neighbour_with_a_longer_name_is_not_inside(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, Path(f"{source}-out"))
    assert len(rows_of(f"{source}-out")) == 12


def test_pictures_of_some_or_none(make_detector: Callable[..., Detector], source: Path, tmp_path: Path) -> None:
    predict(make_detector((1.0,)), source, tmp_path / "none", pictures=Pictures.NONE)
    scores = sorted(row["score"] for row in rows_of(tmp_path / "none") if row["score"] is not None)
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["scores.csv", "scores.parquet", "stamp.json"]
    predict(make_detector((scores[5],)), source, tmp_path / "some", pictures=Pictures.ANOMALOUS)
    expected = {f"{row['image']}.png" for row in rows_of(tmp_path / "some") if row["decision"] == "anomalous"}
    assert len(expected) == 5
    assert (
        set(Store(tmp_path / "some" / "maps").list()) == set(Store(tmp_path / "some" / "overlays").list()) == expected
    )


def test_overlays_show_the_image_where_nothing_is_hot() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for level in (0.0, COLD, np.nan):
        np.testing.assert_array_equal(np.asarray(overlay(pixels, np.full((8, 8), level))), pixels)
    half = np.zeros((8, 8))
    half[:, 4:] = 1.0
    shown = np.asarray(overlay(pixels, half)).astype(int)
    np.testing.assert_array_equal(shown[:, :24], pixels[:, :24])
    assert np.abs(shown - pixels)[:, 40:].mean() > 30
