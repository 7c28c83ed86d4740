"""The geometry of the report's charts, and the bars of the classes with whatever intervals there are."""

import re
from dataclasses import replace

import numpy as np
import pytest

from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.curves import Curve
from fmad_dist.metrics.results import Results, ScoreRow
from fmad_dist.report import charts
from fmad_dist.report.charts import bar_charts
from tests.support.toy_states import single_defects, three_classes


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-5.0, 1.0, 2.0], [1e-3, 1.0, 1e6]])
def test_score_charts_stay_inside_their_frame(scores: list[float]) -> None:
    rows = [ScoreRow(str(i), "toy/a", i % 2, "good", score) for i, score in enumerate(scores)]
    chart = charts.score_chart(rows)
    assert ("logarithmic" in chart.x_name) == (max(scores) > 1e5)
    for line in chart.lines:
        numbers = np.array(re.findall(r"-?[\d.]+", line.path), dtype=float).reshape(-1, 2)
        assert numbers[:, 0].min() >= charts.LEFT
        assert numbers[:, 0].max() <= charts.RIGHT
        assert numbers[:, 1].min() >= charts.TOP
        assert numbers[:, 1].max() <= charts.BOTTOM
    assert chart.mark is not None
    assert charts.LEFT <= chart.mark <= charts.RIGHT


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    fpr = np.linspace(0, 1, 50_000)
    line = charts._line("pixel", "pixel", Curve(fpr, np.sqrt(fpr)), 1.0)
    points = line.path.removeprefix("M").split("L")
    assert len(points) <= charts.NUM_CURVE_POINTS
    assert points[0] == f"{charts.LEFT}.0,{charts.BOTTOM}.0"
    assert points[-1] == f"{charts.RIGHT}.0,{charts.TOP}.0"


def without_intervals(results: Results) -> Results:
    classes = {name: replace(result, intervals={}) for name, result in results.classes.items()}
    datasets = {name: replace(mean, intervals={}) for name, mean in results.datasets.items()}
    return replace(results, classes=classes, datasets=datasets, mean=replace(results.mean, intervals={}))


def narrowed(results: Results) -> Results:
    """The same results whose pixel metrics of one class have intervals too."""
    result = results.classes["toy/disc"]
    metrics = replace(result.metrics, pixel_auroc=0.75, aupro=0.5)
    intervals = result.intervals | {"pixel_auroc": (0.7, 0.8), "aupro": (0.25, 0.625)}
    return replace(
        results, classes=results.classes | {"toy/disc": replace(result, metrics=metrics, intervals=intervals)}
    )


def test_every_class_has_a_bar_and_undefined_ones_are_empty() -> None:
    results = compute_results(three_classes())
    found = {chart.title: chart for chart in bar_charts(results)}
    assert list(found) == ["image AUROC", "pixel AUROC", "AUPRO"]
    for chart in found.values():
        assert [bar.entry.name for bar in chart.bars] == [
            "Mean over classes",
            "other",
            "huge",
            "toy",
            "disc",
            "only good",
        ]
        empty = chart.bars[-1]
        assert (empty.text, empty.length, empty.low, empty.interval) == ("–", 0.0, None, "")
    bar = found["image AUROC"].bars[4]
    low, high = results.classes["toy/disc"].intervals["image_auroc"]
    assert bar.interval == f"{100 * low:.1f} to {100 * high:.1f}"


def test_intervals_are_drawn_for_every_metric_that_has_them() -> None:
    without, narrow = without_intervals(results()), narrowed(without_intervals(results()))
    plain, narrow = ({chart.title: chart for chart in bar_charts(one)} for one in (without, narrow))
    assert not plain["AUPRO"].has_intervals
    assert narrow["AUPRO"].has_intervals
    bar = narrow["AUPRO"].bars[4]
    assert (bar.length, bar.low, bar.high, bar.interval) == (50.0, 25.0, 62.5, "25.0 to 62.5")
    assert narrow["AUPRO"].bars[2].low is None


def test_an_auroc_starts_at_chance_unless_one_is_worse() -> None:
    narrow = narrowed(results())
    low = narrow.classes["toy/disc"].intervals["image_auroc"][0]
    found = {chart.title: chart for chart in bar_charts(narrow)}
    assert found["image AUROC"].start == ("0" if low < 0.5 else "50")
    assert found["pixel AUROC"].start == "50"
    assert found["pixel AUROC"].bars[4].length == 50.0
    assert found["AUPRO"].start == "0"


def test_one_class_has_one_bar_and_single_defects_their_area() -> None:
    found = bar_charts(compute_results(single_defects()))
    assert [chart.title for chart in found] == ["image AUROC", "pixel AUROC", "AUPRO", "AU-sPRO 0.05"]
    assert all([bar.entry.name for bar in chart.bars] == ["box"] for chart in found)


def results() -> Results:
    return compute_results(three_classes())
