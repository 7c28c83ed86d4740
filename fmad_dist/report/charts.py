"""The geometry of the report's charts; the template draws it, so that colours follow the page's theme.

Bars of every class with their 95 % intervals are drawn by the style sheet, so that they fit any screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmad_dist.metrics.curves import Curve, best_f1, pro_curve, rank_pixels, rank_scores, roc_curve
from fmad_dist.metrics.histogram import PixelHistogram
from fmad_dist.metrics.results import ClassResult, Results, ScoreRow
from fmad_dist.report.tables import Entry, entries
from fmad_dist.report.titles import interval_text, long_title, percent

WIDTH, HEIGHT = 360, 224  # of every chart in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 12, 186  # of its plot area
NUM_BARS = 32
NUM_CURVE_POINTS = 240
BAR_METRICS = ("image_auroc", "pixel_auroc", "aupro", "au_spro@0.05")
CHANCE = 0.5  # bars of an AUROC start here, unless one is worse than chance
LOG_RANGE = 1000.0  # positive scores that span more are shown on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a position in SVG units along its axis."""

    position: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line or filled area: `kind` names its colour in the style sheet, `path` is SVG path data."""

    kind: str
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart; `mark` is the x position of a vertical line at the best threshold, with the text `mark_text`."""

    title: str
    summary: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    filled: bool = False
    mark: float | None = None
    mark_text: str = "best F1 (oracle)"


@dataclass(frozen=True, slots=True)
class Bar:
    """One class or mean; `length`, `low` and `high` are percent of the axis, the last two None without an interval."""

    entry: Entry
    text: str
    length: float
    low: float | None
    high: float | None
    interval: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """One metric; `start` is where its axis starts, in percent, and it ends at 100."""

    title: str
    start: str
    has_intervals: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map of [low, high] onto [start, stop] in SVG units."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        share = (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def tick(self, value: float, text: str) -> Tick:
        """A label at a value."""
        return Tick(round(float(self(np.array(value))), 1), text)


def score_chart(rows: Sequence[ScoreRow]) -> Chart:
    """Histogram of image scores, normal against anomalous, with the best-F1 threshold where there is one."""
    scores = np.array([row.score for row in rows], dtype=np.float64)
    labels = np.array([row.label for row in rows], dtype=np.int64)
    logarithmic = bool(scores.min() > 0 and scores.max() / scores.min() > LOG_RANGE)
    shown = np.log10(scores) if logarithmic else scores
    edges = np.linspace(*_widened(shown.min(), shown.max()), NUM_BARS + 1)
    counts = {label: np.histogram(shown[labels == label], edges)[0] for label in (0, 1)}
    x = Axis(edges[0], edges[-1], LEFT, RIGHT)
    y = Axis(0, max(1, int(max(counts[0].max(), counts[1].max()))), BOTTOM, TOP)
    names = {0: ("normal", f"normal ({np.sum(labels == 0)})"), 1: ("anomalous", f"anomalous ({labels.sum()})")}
    lines = [Line(*names[label], _steps(x(edges), y(counts[label]))) for label in (0, 1) if counts[label].any()]
    mark = None
    if 0 < labels.sum() < labels.size:
        threshold = np.unique(shown)[::-1][best_f1(rank_scores(scores, labels))[1]]
        mark = round(float(x(threshold)), 1)
    return Chart(
        title="Image scores",
        summary="histogram of the image scores of normal and anomalous images",
        x_name="image score, logarithmic" if logarithmic else "image score",
        y_name="images",
        x_ticks=tuple(x.tick(value, f"{10**value if logarithmic else value:.3g}") for value in _round_values(x, 5)),
        y_ticks=tuple(y.tick(value, f"{value:.0f}") for value in _round_values(y, 4, whole=True)),
        lines=tuple(lines),
        filled=True,
        mark=mark,
    )


def roc_chart(rows: Sequence[ScoreRow], histogram: PixelHistogram, result: ClassResult) -> Chart | None:
    """Image and pixel ROC curves, or None when neither is defined."""
    lines = []
    if "image_auroc" not in result.undefined:
        scores, labels = np.array([row.score for row in rows]), np.array([row.label for row in rows])
        lines.append(_line("image", "image", roc_curve(rank_scores(scores, labels)), 1.0))
    if "pixel_auroc" not in result.undefined:
        lines.append(_line("pixel", "pixel", roc_curve(rank_pixels(histogram)), 1.0))
    return _rate_chart("ROC", "true over false positive rate", "true positive rate", lines, 1.0)


def pro_chart(histogram: PixelHistogram, result: ClassResult, limit: float) -> Chart | None:
    """Per-region overlap up to the FPR limit, or None when it is undefined."""
    if "aupro" in result.undefined:
        return None
    line = _line("pixel", "per-region overlap", pro_curve(histogram).until(limit), limit)
    summary = f"per-region overlap over false positive rate up to {limit:g}"
    return _rate_chart("PRO", summary, "per-region overlap", [line], limit)


def _rate_chart(title: str, summary: str, y_name: str, lines: list[Line], limit: float) -> Chart | None:
    if not lines:
        return None
    x, y = Axis(0, limit, LEFT, RIGHT), Axis(0, 1, BOTTOM, TOP)
    return Chart(
        title=title,
        summary=summary,
        x_name="false positive rate of normal pixels" if title == "PRO" else "false positive rate",
        y_name=y_name,
        x_ticks=tuple(x.tick(value, f"{value:.2g}") for value in np.linspace(0, limit, 4 if limit < 1 else 5)),
        y_ticks=tuple(y.tick(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)),
        lines=tuple(lines),
    )


def _line(kind: str, name: str, curve: Curve, limit: float) -> Line:
    x = Axis(0, limit, LEFT, RIGHT)(curve.fpr)
    y = Axis(0, 1, BOTTOM, TOP)(curve.height)
    return Line(kind, name, _path(*_thinned(x, y)))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most NUM_CURVE_POINTS of the points, evenly along the drawn length; fewer points stay as they are."""
    if x.size <= NUM_CURVE_POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    wanted = np.linspace(0, length[-1], NUM_CURVE_POINTS)
    kept = np.unique(np.searchsorted(length, wanted).clip(max=length.size - 1))
    return x[kept], y[kept]


def _steps(edges: np.ndarray, tops: np.ndarray) -> str:
    """The outline of bars between `edges`, closed along the base line."""
    return _path(np.repeat(edges, 2), np.concatenate([[BOTTOM], np.repeat(tops, 2), [BOTTOM]])) + "Z"


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return float(low), float(high)
    margin = max(abs(low), 1.0) / 2
    return float(low) - margin, float(high) + margin


def _round_values(axis: Axis, count: int, whole: bool = False) -> list[float]:
    """At most about `count` round numbers on the axis."""
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(MaxNLocator(count, integer=whole).tick_values(axis.low, axis.high))
    return [value for value in values.tolist() if axis.low <= value <= axis.high]


def bar_charts(results: Results) -> list[BarChart]:
    """A chart for each metric of BAR_METRICS that is defined anywhere."""
    shown = entries(results)
    if len(results.classes) == 1:
        shown = shown[-1:]  # its means are the class again
    return [
        _bar_chart(name, shown) for name in BAR_METRICS if any(not math.isnan(one.figures.value(name)) for one in shown)
    ]


def _bar_chart(metric: str, shown: Sequence[Entry]) -> BarChart:
    intervals = [entry.figures.intervals.get(metric) for entry in shown]
    ends = [*(entry.figures.value(metric) for entry in shown), *(interval[0] for interval in intervals if interval)]
    lowest = min(end for end in ends if not math.isnan(end))
    start = CHANCE if metric.endswith("auroc") and lowest >= CHANCE else 0.0
    bars = tuple(_bar(entry, metric, start) for entry in shown)
    return BarChart(long_title(metric), f"{100 * start:g}", any(intervals), bars)


def _bar(entry: Entry, metric: str, start: float) -> Bar:
    def on_axis(share: float) -> float:
        return round(100 * (share - start) / (1 - start), 2)

    value, interval = entry.figures.value(metric), entry.figures.intervals.get(metric)
    length = 0.0 if math.isnan(value) else on_axis(value)
    low, high = map(on_axis, interval) if interval else (None, None)
    return Bar(entry, percent(value), length, low, high, interval_text(interval) if interval else "")
