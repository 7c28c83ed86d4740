"""The tables over all classes: summary, intervals, areas at further limits; and the types of defect of one class.

For other documents they are written to results.md and results.tex.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fmad_dist.metrics.results import METRIC_NAMES, ClassResult, DefectResult, MeanResult, Results
from fmad_dist.metrics.state import dataset_of
from fmad_dist.report.benchmark import ComparedRow, benchmark_grids, compared_rows
from fmad_dist.report.grid import Grid, Line, escape_markdown, latex, markdown
from fmad_dist.report.titles import DASH, interval_text, long_title, percent, short_title
from fmad_dist.storage import Store

MEAN_NAME = "Mean over classes"
LATEX_HEAD = r"% Tables of an fmad evaluation. Needs \usepackage{booktabs}; \input this file."
NOTES = (
    "Images: normal + anomalous. F1max takes the best threshold of the test set itself: an upper limit.",
    f"{DASH} means undefined; undefined classes are left out of a mean.",
)
Kind = Literal["mean", "dataset", "class"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line of a table is about: a mean, a class or one of its types of defect; `anchor` is that of a class."""

    name: str
    kind: Kind
    anchor: str
    figures: ClassResult | MeanResult | DefectResult

    @property
    def count(self) -> str:
        """Images: normal + anomalous of a class, the anomalous ones of a type of defect, all of a mean."""
        match self.figures:
            case ClassResult():
                return f"{self.figures.num_normal} + {self.figures.num_anomalous}"
            case DefectResult():
                return str(self.figures.num_anomalous)
        return str(self.figures.num_images)


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in percent, or a dash with the reason in `note`; `lowest` marks the weakest class of the column."""

    text: str
    note: str = ""
    lowest: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table, with a cell for each of its titles."""

    entry: Entry
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`titles` are those of the columns beside names and counts."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def any_lowest(self) -> bool:
        """Whether a cell is marked as the weakest of its column."""
        return any(cell.lowest for row in self.rows for cell in row.cells)


def entries(results: Results) -> list[Entry]:
    """The overall mean, then every dataset's mean followed by its classes; the mean of a single dataset is the overall
    one and is not repeated."""
    found, ids = [Entry(MEAN_NAME, "mean", "", results.mean)], anchors(results.classes)
    for dataset, mean in results.datasets.items():
        if len(results.datasets) > 1:
            found.append(Entry(dataset, "dataset", "", mean))
        found += [
            Entry(name.split("/", 1)[-1], "class", ids[name], result)
            for name, result in results.classes.items()
            if dataset_of(name) == dataset
        ]
    return found


def anchors(class_names: Iterable[str]) -> dict[str, str]:
    """The id of every class's section, which is the name of its page too; no two are the same, in capitals neither."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in class_names:
        wanted = anchor = "class-" + re.sub(r"[^A-Za-z0-9]+", "-", name)
        number = 1
        while anchor.lower() in used:
            number += 1
            anchor = f"{wanted}-{number}"
        used.add(anchor.lower())
        found[name] = anchor
    return found


def summary_table(results: Results) -> Table:
    """All metrics of all classes."""
    lowest = _lowest_values(results)

    def cell(entry: Entry, metric: str) -> Cell:
        assert not isinstance(entry.figures, DefectResult)
        value, reason = entry.figures.value(metric), entry.figures.undefined.get(metric, "")
        note = f"left out: {reason} undefined" if isinstance(reason, int) else reason
        return Cell(percent(value), note, lowest=entry.kind == "class" and value == lowest.get(metric))

    return _table(entries(results), METRIC_NAMES, cell, short_title)


def intervals_table(results: Results) -> Table:
    """A column for every metric that has intervals."""

    def cell(entry: Entry, metric: str) -> Cell:
        interval = entry.figures.intervals.get(metric)
        return Cell(interval_text(interval) if interval else DASH)

    names = [name for name in METRIC_NAMES if name in results.mean.intervals]
    return _table(entries(results), names, cell, short_title)


def areas_table(results: Results) -> Table:
    """The areas at further limits, and what only some benchmarks have."""
    return _table(entries(results), tuple(results.mean.areas), _value)


def types_table(result: ClassResult) -> Table | None:
    """A class by type of defect, when it has several."""
    if len(result.defects) < 2:
        return None
    areas = sorted({name for defect in result.defects.values() for name in defect.areas if "spro" in name})
    return _table([Entry(n, "class", "", d) for n, d in result.defects.items()], (*METRIC_NAMES, *areas), _value)


def write_tables(results: Results, out: Path, peers: Mapping[str, Sequence[ComparedRow]] | None = None) -> None:
    """Write results.md and results.tex into the folder `out`: means and classes, intervals, areas, benchmarks."""
    title, note = results.protocol.title, results.protocol.note
    notes = (*NOTES, note) if note else NOTES
    grids = [
        _grid(summary_table(results), f"Results in percent, protocol {title}", "results", notes=notes),
        _grid(intervals_table(results), "95 % intervals in percent, bootstrap over images", "intervals"),
        _grid(areas_table(results), "Areas at further limits in percent", "areas", counted=False),
    ]
    shown = [grid for grid in grids if grid] + benchmark_grids(compared_rows(results, peers or {}))
    head = f"# fmad evaluation, protocol {title}\n" + (f"\n{escape_markdown(note)}\n" if note else "")
    store = Store(out)
    store.write("results.md", "\n".join([head, *map(markdown, shown)]).encode())
    store.write("results.tex", "\n".join([LATEX_HEAD, "", *map(latex, shown)]).encode())


def _table(
    about: Iterable[Entry],
    names: Sequence[str],
    cell: Callable[[Entry, str], Cell],
    title: Callable[[str], str] = long_title,
) -> Table:
    rows = [Row(entry, tuple(cell(entry, name) for name in names)) for entry in about]
    return Table(tuple(map(title, names)), tuple(rows))


def _value(entry: Entry, name: str) -> Cell:
    return Cell(percent(entry.figures.value(name)))


def _lowest_values(results: Results) -> dict[str, float]:
    """The lowest value of each metric among the classes, when there are enough of them to compare."""
    if len(results.classes) < 3:
        return {}
    tables = [asdict(result.metrics) for result in results.classes.values()]
    columns = {name: [table[name] for table in tables if not math.isnan(table[name])] for name in METRIC_NAMES}
    return {name: min(values) for name, values in columns.items() if len(set(values)) > 1}


def _grid(table: Table, caption: str, label: str, *, counted: bool = True, notes: tuple[str, ...] = ()) -> Grid | None:
    """The table as text, None if it has no columns; means stand out, and a rule is above the mean of every dataset."""
    if not table.titles:
        return None
    lines = []
    for entry, cells in ((row.entry, row.cells) for row in table.rows):
        texts = (entry.name, *[entry.count] * counted, *(cell.text for cell in cells))
        lines.append(Line(texts, strong=entry.kind != "class", rule=entry.kind == "dataset"))
    return Grid(caption, label, ("Class", *["Images"] * counted, *table.titles), tuple(lines), notes)
