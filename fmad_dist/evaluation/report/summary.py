"""The tables over all classes: the summary, the areas at further limits, and the types of defect of one class."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fmad_dist.evaluation.report.titles import area_title, long_title, percent
from fmad_dist.evaluation.results import METRIC_NAMES, ClassResult, MeanResult, Results
from fmad_dist.evaluation.state import dataset_of

MEAN_NAME = "Mean over classes"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of every table over all classes; `kind` is mean, dataset or class, `anchor` that of a class."""

    name: str
    kind: str
    anchor: str
    result: ClassResult | MeanResult


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric in percent, or a dash with the reason in `note`; `lowest` marks the weakest class of the column."""

    text: str
    note: str = ""
    lowest: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the summary table."""

    name: str
    kind: str
    anchor: str
    counts: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A line of a table of percentages; `kind` and `anchor` as in Entry, `count` is empty where none is shown."""

    name: str
    kind: str
    anchor: str
    count: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of percentages with the `titles` of its columns."""

    titles: tuple[str, ...]
    rows: tuple[TableRow, ...]


def entries(results: Results) -> list[Entry]:
    """The overall mean, then every dataset's mean followed by its classes; the mean of a single dataset is the overall
    one and is not repeated."""
    found = [Entry(MEAN_NAME, "mean", "", results.mean)]
    for dataset, mean in results.datasets.items():
        if len(results.datasets) > 1:
            found.append(Entry(dataset, "dataset", "", mean))
        found += [
            Entry(name.split("/", 1)[-1], "class", anchor(name), result)
            for name, result in results.classes.items()
            if dataset_of(name) == dataset
        ]
    return found


def anchor(class_name: str) -> str:
    """The id of a class's section on the page."""
    return "class-" + re.sub(r"[^A-Za-z0-9]+", "-", class_name)


def summary_rows(results: Results) -> list[Row]:
    """All metrics of all classes."""
    lowest = lowest_values(results)
    return [_row(entry, lowest if entry.kind == "class" else {}) for entry in entries(results)]


def lowest_values(results: Results) -> dict[str, float]:
    """The lowest value of each metric among the classes, when there are enough of them to compare."""
    if len(results.classes) < 3:
        return {}
    tables = [asdict(result.metrics) for result in results.classes.values()]
    columns = {name: [table[name] for table in tables if not math.isnan(table[name])] for name in METRIC_NAMES}
    return {name: min(values) for name, values in columns.items() if len(set(values)) > 1}


def areas_table(results: Results) -> Table:
    """The areas at further limits, and what only some benchmarks have."""
    names = tuple(results.mean.areas)
    rows = [TableRow(one.name, one.kind, one.anchor, "", _cells(one.result.areas, names)) for one in entries(results)]
    return Table(tuple(map(area_title, names)), tuple(rows))


def types_table(result: ClassResult) -> Table | None:
    """A class by type of defect, when it has several."""
    if len(result.defects) < 2:
        return None
    areas = tuple(sorted({name for defect in result.defects.values() for name in defect.areas if "spro" in name}))
    rows = []
    for name, defect in result.defects.items():
        metrics = tuple(map(percent, asdict(defect.metrics).values()))
        rows.append(TableRow(name, "class", "", str(defect.num_anomalous), metrics + _cells(defect.areas, areas)))
    return Table((*map(long_title, METRIC_NAMES), *map(area_title, areas)), tuple(rows))


def counts(result: ClassResult | MeanResult) -> str:
    """Images: normal + anomalous of a class, all of a mean."""
    if isinstance(result, ClassResult):
        return f"{result.num_normal} + {result.num_anomalous}"
    return f"{result.num_images}"


def _row(entry: Entry, lowest: dict[str, float]) -> Row:
    cells = []
    for metric, value in asdict(entry.result.metrics).items():
        reason: Any = entry.result.undefined.get(metric, "")
        note = f"left out: {reason} undefined" if isinstance(reason, int) else reason
        cells.append(Cell(percent(value), note, lowest=value == lowest.get(metric)))
    return Row(entry.name, entry.kind, entry.anchor, counts(entry.result), tuple(cells))


def _cells(areas: dict[str, float], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(percent(areas.get(name, math.nan)) for name in names)
