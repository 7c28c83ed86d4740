"""The bars of the classes, with whatever intervals there are."""

from dataclasses import replace

from toy_states import single_defects, three_classes

from fmad_dist.evaluation.report.bars import bar_charts
from fmad_dist.evaluation.results import Results


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
    results = three_classes().compute()
    charts = {chart.title: chart for chart in bar_charts(results)}
    assert list(charts) == ["image AUROC", "pixel AUROC", "AUPRO"]
    for chart in charts.values():
        assert [bar.name for bar in chart.bars] == ["Mean over classes", "other", "huge", "toy", "disc", "only good"]
        empty = chart.bars[-1]
        assert (empty.text, empty.length, empty.low, empty.interval) == ("–", 0.0, None, "")
    bar = charts["image AUROC"].bars[4]
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
    found = narrowed(results())
    low = found.classes["toy/disc"].intervals["image_auroc"][0]
    charts = {chart.title: chart for chart in bar_charts(found)}
    assert charts["image AUROC"].start == ("0" if low < 0.5 else "50")
    assert charts["pixel AUROC"].start == "50"
    assert charts["pixel AUROC"].bars[4].length == 50.0
    assert charts["AUPRO"].start == "0"


def test_one_class_has_one_bar_and_single_defects_their_area() -> None:
    charts = bar_charts(single_defects().compute())
    assert [chart.title for chart in charts] == ["image AUROC", "pixel AUROC", "AUPRO", "AU-sPRO 0.05"]
    assert all([bar.name for bar in chart.bars] == ["box"] for chart in charts)


def results() -> Results:
    return three_classes().compute()
