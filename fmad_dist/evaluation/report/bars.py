"""Bars of every class with their 95 % intervals; the style sheet draws them, so that they fit any screen."""

import math
from dataclasses import dataclass

from fmad_dist.evaluation.report.summary import Entry, entries
from fmad_dist.evaluation.report.titles import interval_text, long_title, percent
from fmad_dist.evaluation.results import METRIC_NAMES, Results

SHOWN = ("image_auroc", "pixel_auroc", "aupro", "au_spro@0.05")
CHANCE = 0.5  # bars of an AUROC start here, unless one is worse than chance


@dataclass(frozen=True, slots=True)
class Bar:
    """One class or mean; `length`, `low` and `high` are percent of the axis, the last two None without an interval."""

    name: str
    kind: str
    anchor: str
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


def bar_charts(results: Results) -> list[BarChart]:
    """A chart for each metric of SHOWN that is defined anywhere."""
    lines = entries(results)
    if len(results.classes) == 1:
        lines = lines[-1:]  # its means are the class again
    charts = []
    for metric in SHOWN:
        values = {position: _value(entry, metric) for position, entry in enumerate(lines)}
        if not all(map(math.isnan, values.values())):
            charts.append(_chart(metric, lines, values))
    return charts


def _chart(metric: str, lines: list[Entry], values: dict[int, float]) -> BarChart:
    found = {position: lines[position].result.intervals.get(metric) for position in values}
    ends = [*values.values(), *(pair[0] for pair in found.values() if pair)]
    lowest = min(end for end in ends if not math.isnan(end))
    start = CHANCE if metric.endswith("auroc") and lowest >= CHANCE else 0.0
    bars = [_bar(lines[position], value, found[position], start) for position, value in values.items()]
    return BarChart(long_title(metric), f"{100 * start:g}", any(found.values()), tuple(bars))


def _bar(entry: Entry, value: float, pair: tuple[float, float] | None, start: float) -> Bar:
    def place(share: float) -> float:
        return round(100 * (share - start) / (1 - start), 2)

    length = 0.0 if math.isnan(value) else place(value)
    low, high = (place(pair[0]), place(pair[1])) if pair else (None, None)
    interval = interval_text(pair) if pair else ""
    return Bar(entry.name, entry.kind, entry.anchor, percent(value), length, low, high, interval)


def _value(entry: Entry, metric: str) -> float:
    result = entry.result
    return getattr(result.metrics, metric) if metric in METRIC_NAMES else result.areas.get(metric, math.nan)
