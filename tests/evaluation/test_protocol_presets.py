"""Protocols of others: their estimators by brute force, the bias they are known for, and that it is said everywhere."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_pixel_metrics import TRANSFORMS, exact_metrics, smooth_maps
from typer.testing import CliRunner

from fmad_dist.config_files import load_config
from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation.histogram import PixelHistogram, bin_middles
from fmad_dist.evaluation.presets import PRESETS
from fmad_dist.evaluation.protocol import Protocol, named_protocol
from fmad_dist.evaluation.report.html import write_report
from fmad_dist.evaluation.report.sections import class_section
from fmad_dist.evaluation.results import write_results
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.evaluation.strips import strip_metrics
from fmad_dist.evaluation.summary import print_summary
from fmad_dist.scoring.config import InversionConfig
from fmad_dist.scoring.maps import finish, upsample

MakeScored = Callable[..., ScoredImage]
OTHERS = ["ader", "dinomaly", "flowad"]


def histogram_of(maps: np.ndarray, masks: np.ndarray, max_bins: int) -> PixelHistogram:
    histogram = PixelHistogram(max_bins)
    for anomaly_map, mask in zip(maps.astype(np.float32), masks, strict=True):
        histogram.add(anomaly_map, mask, 8)
    return histogram


class BruteForce:
    """Every threshold applied to every pixel of all maps."""

    def __init__(self, maps: np.ndarray, masks: np.ndarray) -> None:
        self.maps, self.masks = maps.astype(np.float32).astype(float), masks
        self.low, self.high = self.maps.min(), self.maps.max()
        self.regions = []
        for anomaly_map, mask in zip(self.maps, masks, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            self.regions += [anomaly_map[labels == k] for k in range(1, count + 1)]

    def rates(self, called: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
        overlap = float(np.mean([called(region).mean() for region in self.regions]))
        return called(self.maps[~self.masks]).mean(), called(self.maps[self.masks]).mean(), overlap

    def edges(self, number: int) -> list[float]:
        return [self.high - (self.high - self.low) * k / number for k in range(number + 1)]

    def strips(self, number: int) -> tuple[float, float, float]:
        """AUROC, AP and AUPRO by trapezoids between the edges, as adeval has them."""
        fpr, tpr, pro = np.array([self.rates(lambda x, t=t: x >= t) for t in self.edges(number)]).T
        normal, anomalous = (~self.masks).sum(), self.masks.sum()
        precision = tpr * anomalous / (tpr * anomalous + fpr * normal)
        inside = fpr <= 0.3
        x, y = fpr[inside], pro[inside]
        if not inside.all():
            step = np.flatnonzero(~inside)[0]
            share = (0.3 - fpr[step - 1]) / (fpr[step] - fpr[step - 1])
            x, y = np.append(x, 0.3), np.append(y, pro[step - 1] + share * (pro[step] - pro[step - 1]))
        return np.trapezoid(tpr, fpr), np.trapezoid(precision, tpr), np.trapezoid(y, x) / 0.3

    def stretched(self, number: int) -> float:
        thresholds = np.arange(self.low, self.high, (self.high - self.low) / number)
        fpr, _, pro = np.array([self.rates(lambda x, t=t: x > t) for t in thresholds[::-1]]).T
        fpr, pro = fpr[fpr < 0.3], pro[fpr < 0.3]
        return float(np.trapezoid(pro, fpr / fpr.max()))

    def f1max(self, levels: int) -> float:
        found = []
        for threshold in self.edges(levels - 1):
            called = self.maps > threshold
            found.append(2 * (called & self.masks).sum() / (called.sum() + self.masks.sum()))
        return max(found)


@pytest.mark.parametrize("transform", ["smooth", "exponential", "clipped", "negative"])
@pytest.mark.parametrize(("max_bins", "tolerance"), [(2**20, 1e-6), (2**12, 5e-3)])
def test_estimators_are_those_of_the_public_codes(transform: str, max_bins: int, tolerance: float) -> None:
    """To rounding where every score has its bin, and closely where bins are merged."""
    maps, masks = smooth_maps(num_maps=9, size=64, seed=3)
    maps = TRANSFORMS[transform](maps)
    histogram, brute = histogram_of(maps, masks, max_bins), BruteForce(maps, masks)
    assert (histogram.bits == 32) == (max_bins == 2**20)
    found = {name: strip_metrics(histogram, named_protocol(name)) for name in OTHERS}
    auroc, ap, aupro = brute.strips(50)
    expected = {
        "ader": {"pixel_auroc": auroc, "pixel_ap": ap, "aupro": aupro, "pixel_f1max": brute.f1max(21)},
        "dinomaly": {"aupro": brute.stretched(200)},
        "flowad": {
            "pixel_auroc": brute.strips(1000)[0],
            "aupro": brute.strips(1000)[2],
            "pixel_f1max": brute.f1max(1001),
        },
    }
    for name in OTHERS:
        assert found[name] == pytest.approx(expected[name], abs=tolerance), name


def test_a_monotone_transform_changes_the_estimates_of_others_and_not_ours() -> None:
    maps, masks = smooth_maps(num_maps=24, size=96, seed=3)
    before, after = maps, np.exp(1.3 * maps)
    np.testing.assert_allclose(exact_metrics(after, masks), exact_metrics(before, masks), atol=1e-5)
    aupro = exact_metrics(before, masks)[3]
    plain, moved = (histogram_of(one, masks, 2**17) for one in (before, after))

    def change(name: str, metric: str) -> float:
        protocol = named_protocol(name)
        return strip_metrics(moved, protocol)[metric] - strip_metrics(plain, protocol)[metric]

    assert change("ader", "aupro") < -0.2
    assert change("ader", "pixel_auroc") < -0.2
    assert change("ader", "pixel_f1max") < -0.015
    assert change("dinomaly", "aupro") < -0.1
    assert -0.02 < change("flowad", "aupro") < -5e-4  # 1000 strips are better, and still not invariant
    assert strip_metrics(moved, named_protocol("dinomaly"))["aupro"] < 0.8 * aupro


def test_middles_of_bins_are_the_scores_where_every_score_has_its_bin() -> None:
    scores = np.array([[-3e38, -1.5, -1e-40, 0.0], [1e-40, 1.5, 2.5, 3e38]], dtype=np.float32)
    exact = histogram_of(scores[None], np.zeros((1, 2, 4), dtype=bool), 1024)
    np.testing.assert_array_equal(bin_middles(exact), np.sort(scores.ravel()).astype(float))
    maps, masks = smooth_maps(num_maps=1, size=96, seed=1)
    coarse = histogram_of(maps + 100, masks, 1024)
    assert coarse.bits < 32
    assert np.abs(bin_middles(coarse)[[0, -1]] / (100 + maps[0].min(), 100 + maps[0].max()) - 1).max() < 1e-3


@pytest.mark.parametrize("name", OTHERS)
def test_too_few_thresholds_leave_a_metric_undefined(name: str, make_scored: MakeScored) -> None:
    flat = np.ones((8, 8), dtype=np.float32)
    protocol = Protocol(name=name, map_size=8)
    state = state_of([make_scored("a", 0, anomaly_map=flat), make_scored("b", 1, anomaly_map=flat)], protocol)
    result = state.compute().classes["toy/disc"]
    assert np.isnan(result.metrics.aupro)
    assert result.undefined["aupro"] == "too few thresholds of equal width"


def state_of(images: list[ScoredImage], protocol: Protocol) -> EvaluationState:
    state = EvaluationState(protocol)
    for image in images:
        state.update(image)
    return state


@pytest.fixture
def images(make_scored: MakeScored) -> list[ScoredImage]:
    names = [f"{kind}/test/{i:02d}" for kind in ("toy/disc", "toy/ring", "other/rod") for i in range(8)]
    return [make_scored(name, int(i % 3 == 0), i, name.rsplit("/", 2)[0]) for i, name in enumerate(names)]


@pytest.mark.parametrize("name", OTHERS)
def test_name_and_bias_are_said_wherever_numbers_are(
    name: str, images: list[ScoredImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = Protocol(name=name, map_size=8)
    state = state_of(images, protocol)
    results = state.compute()
    assert protocol.title == f"{name} v1 with map_size=8 (biased)"
    assert named_protocol(name).title == f"{name} v1 (biased)"
    for result in (*results.classes.values(), *results.datasets.values(), results.mean):
        assert result.intervals.keys().isdisjoint(protocol.estimated)
        assert {"image_auroc", "image_ap"} <= result.intervals.keys()
        assert not any(area.startswith("aupro@") for area in result.areas)
    write_results(results, tmp_path)
    page = write_report(results, state, tmp_path / "report.html", title="toy", facts={}).read_text()
    print_summary(tmp_path)
    terminal = capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert Protocol.model_validate(written["protocol"]) == protocol
    for text in (
        re.sub("<[^>]+>", "", page),
        " ".join(terminal.split()),
        written["protocol_title"] + written["protocol_note"],
    ):
        assert protocol.title in text
        assert "Biased estimates, for comparison with published numbers only" in text
    for table in ("results.csv", "scores.csv"):
        assert {row["protocol"] for row in csv.DictReader((tmp_path / table).open())} == {protocol.title}
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_the_default_is_exact_and_says_what_was_changed() -> None:
    protocol = Protocol()
    assert (protocol.title, protocol.note, protocol.biased, protocol.estimated) == ("fmad-2026", "", False, set())
    assert Protocol(fpr_limit=0.05, blur_sigma=1).title == "fmad-2026 with blur_sigma=1.0, fpr_limit=0.05"
    assert Protocol(f1_levels=21).title == "fmad-2026 with f1_levels=21 (biased)"
    assert Protocol(f1_levels=21).note.startswith("Biased estimates")


def test_scores_made_of_the_whole_test_set_are_scaled_per_dataset(images: list[ScoredImage], tmp_path: Path) -> None:
    """FlowAD's diff+sum; two ranks and any order give the same."""
    protocol = Protocol(name="flowad", map_size=8)
    images = [replace(image, image_score=float(np.ptp(image.anomaly_map))) for image in images]
    ranks = [state_of(images[start::2][::-1], protocol) for start in (0, 1)]
    ranks[1].merge(EvaluationState.from_bytes(ranks[0].to_bytes()))
    results = ranks[1].compute()
    assert results == state_of(images, protocol).compute()
    for dataset, own in (("toy", images[:16]), ("other", images[16:])):
        parts = [np.array([np.ptp(i.anomaly_map) for i in own]), np.array([i.anomaly_map.sum() for i in own])]
        expected = sum((part - part.min()) / (part.max() - part.min()) for part in parts)
        found = {row.sample_id: row.score for row in results.scores if row.sample_id.startswith(dataset)}
        np.testing.assert_allclose([found[image.sample_id] for image in own], expected, rtol=1e-5)
    write_results(results, tmp_path)
    with open(tmp_path / "scores.csv") as file:
        assert {row["sample_id"]: float(row["score"]) for row in csv.DictReader(file)} == {
            row.sample_id: row.score for row in results.scores
        }


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_pictures_follow_scores_that_are_made_of_the_whole_test_set(num_ranks: int, make_scored: MakeScored) -> None:
    """Ranges and sums that disagree: the images of the report are those of the sorted final scores, for any ranks."""
    protocol = Protocol(name="flowad", map_size=8)
    rng = np.random.default_rng(5)
    maps = rng.normal(rng.normal(size=(60, 1, 1)), rng.random((60, 1, 1)), (60, 8, 8)).astype(np.float32)
    images = [make_scored(f"toy/disc/{i:02d}", i % 2, i, anomaly_map=one) for i, one in enumerate(maps)]
    images = [replace(image, image_score=float(np.ptp(image.anomaly_map))) for image in images]
    merged = EvaluationState(protocol)
    for rank in range(num_ranks):
        merged.merge(EvaluationState.from_bytes(state_of(images[rank::num_ranks][::-1], protocol).to_bytes()))
    assert merged.to_bytes() == state_of(images, protocol).to_bytes()
    section = class_section("toy/disc", merged.compute(), merged)
    shown = [[(t.panel.sample_id, t.panel.score) for t in group.tiles] for group in section.gallery.groups]
    parts = [np.array([np.ptp(one) for one in maps]), np.array([one.sum(dtype=float) for one in maps])]
    scores = sum((part - part.min()) / (part.max() - part.min()) for part in parts)
    for label, (highest, lowest) in ((1, shown[:2]), (0, shown[2:])):
        order = sorted(range(label, 60, 2), key=lambda i: scores[i])
        for found, expected in ((lowest, order[:3]), (highest, order[:-4:-1])):
            assert [name for name, _ in found] == [images[i].sample_id for i in expected]
            assert [score for _, score in found] == pytest.approx(scores[expected], rel=1e-5)
    by_range = np.argsort(parts[0][1::2])[::-1][:3] * 2 + 1
    assert [name for name, _ in shown[0]] != [images[i].sample_id for i in by_range]  # or this would test nothing
    assert len(merged.classes["toy/disc"].board.panels) < 50


def test_maps_and_image_scores_are_those_of_the_public_codes() -> None:
    grid = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = upsample(grid, 256, align_corners=True)
    scores, maps = finish(grid, named_protocol("ader"), InversionConfig())
    expected = np.stack([ndimage.gaussian_filter(one, 4) for one in corners.numpy()])
    torch.testing.assert_close(maps, torch.from_numpy(expected))
    assert torch.equal(scores, maps.amax((1, 2)))

    scores, maps = finish(grid, named_protocol("dinomaly"), InversionConfig())
    x = torch.arange(5) - 2.0
    kernel = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 16)).double()
    convolved = torch.nn.functional.conv2d(corners[:, None], (kernel / kernel.sum())[None, None], padding=2)[:, 0]
    torch.testing.assert_close(maps, convolved)
    torch.testing.assert_close(scores, maps.flatten(1).sort(dim=1).values[:, -655:].mean(1))  # int(1 % of 256 * 256)

    scores, maps = finish(grid, named_protocol("flowad"), InversionConfig())
    assert torch.equal(maps, upsample(grid, 256))
    assert torch.equal(scores, maps.amax((1, 2)) - maps.amin((1, 2)))


def test_a_run_chooses_a_protocol_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("protocol: {name: ader}\n")
    assert load_config(tmp_path / "run.yaml").protocol == named_protocol("ader")
    changed = load_config(tmp_path / "run.yaml", ["protocol.blur_sigma=2"]).protocol
    assert (changed.auroc_strips, changed.title) == (50, "ader v1 with blur_sigma=2.0 (biased)")
    with pytest.raises(UserError, match=r"protocol.name: Input should be 'fmad-2026', 'ader'.*got 'adre'"):
        load_config(tmp_path / "run.yaml", ["protocol.name=adre"])
    with pytest.raises(UserError, match=f"protocol 'adre': unknown; choose one of {', '.join(PRESETS)}"):
        named_protocol("adre")


def test_another_protocol_ends_a_detectors_thresholds(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector((0.5, 1.0, 2.0))
    assert detector.with_protocol(detector.spec.protocol).thresholds.tolist() == [0.5, 1.0, 2.0]
    detector.with_protocol(named_protocol("ader"))
    assert detector.thresholds.tolist() == [float("inf")] * 3
    assert detector.spec.calibration is None
    found = detector(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert found.maps.shape == (1, 256, 256)
    assert torch.equal(found.scores, found.maps.amax((1, 2)))


@pytest.mark.parametrize(
    ("words", "logged"),
    [([], True), (["--protocol", "ader"], False), (["--protocol", "fmad-2026"], False), (["scorer.steps=9"], False)],
)
def test_only_the_models_own_protocol_is_logged_as_its_quality(
    words: list[str],
    logged: bool,
    make_detector: Callable[..., Detector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The detector's own protocol has maps of 32 pixels, so the default by name is another one."""
    from fmad_dist.cli import app

    make_detector((0.5, 1.0, 2.0)).save(tmp_path)
    started: list[list[str]] = []
    kept: list[str] = []
    monkeypatch.setattr("fmad_dist.launch.launch", lambda script, arguments, processes: started.append(arguments))
    monkeypatch.setattr("fmad_dist.stream.mixture.Mixture.load", lambda urls: SimpleNamespace(digests={}))
    monkeypatch.setattr("fmad_dist.evaluation.summary.print_summary", lambda folder: None)
    monkeypatch.setattr("fmad_dist.registry.evidence.log_evaluation", lambda model, *_: kept.append(model))
    monkeypatch.setattr("fmad_dist.registry.versions.use_registry", lambda uri: None)
    base = ["evaluate", "--model", str(tmp_path), "--manifest", "m", "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, [*base, *words], catch_exceptions=False)
    assert ended.exit_code == 0
    assert kept == ([str(tmp_path)] if logged else [])
    assert ("--protocol" in started[0]) == ("--protocol" in words)
