"""Our means on a benchmark beside those of peers, measured in the same way, and those that others published.

What others published is in published.yaml.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from fmad_dist.base.console import counted
from fmad_dist.metrics.results import METRIC_NAMES, MeanResult, Results
from fmad_dist.report.grid import Grid, Line
from fmad_dist.report.titles import DASH, percent, short_title

Origin = Literal["ours", "peer", "published"]

OWN_NAME = "fmad, this evaluation"
FIRST = ("image_auroc", "pixel_auroc", "aupro")  # what everyone publishes
ORIGINS: dict[Origin, str] = {"ours": "fmad", "peer": "peers, measured alike", "published": "published"}


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A method on one dataset: means over the classes by the names of `METRIC_NAMES`, shares in [0, 1].

    `note` says under which conditions the numbers hold: the protocol of a measured row, the source of a published one.
    Metrics that are not known are left out.
    """

    name: str
    origin: Origin
    note: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Published:
    """What is published about a benchmark of `num_classes` classes; `cautions` belong beside its table."""

    title: str
    num_classes: int
    rows: tuple[ComparedRow, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """The rows of one dataset in the order ours, peers, published; `metrics` are those that any row has, FIRST first.

    `cautions` are sentences that belong beside the table.
    """

    dataset: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    cautions: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The different notes of the rows."""
        return tuple(dict.fromkeys(row.note for row in self.rows if row.note))

    def mark(self, row: ComparedRow) -> str:
        """The number of a row's note, from 1; empty without one."""
        return str(self.notes.index(row.note) + 1) if row.note else ""

    def cells(self, row: ComparedRow) -> tuple[str, ...]:
        """The metrics of a row as text."""
        return tuple(percent(row.metrics.get(name, math.nan)) for name in self.metrics)


def measured_row(dataset: str, mean: MeanResult, protocol: str, name: str, origin: Origin) -> ComparedRow:
    """A row of means that we measured, with a note that says how."""
    note = measured_note(dataset, mean.num_classes, protocol)
    metrics = {name: value for name, value in mean.metrics.by_name().items() if value is not None}
    return ComparedRow(name, origin, note, metrics)


def measured_note(dataset: str, num_classes: int, protocol: str) -> str:
    """The conditions of a measured row: the protocol, the number of classes, and whether some are missing."""
    known = published(dataset)
    note = f"protocol {protocol}, {counted(num_classes, 'class', 'classes')}"
    if known is not None and num_classes != known.num_classes:
        note += f" where {known.title} has {known.num_classes}, so not its mean"
    return note


def compared_rows(
    results: Results, peers: Mapping[str, Sequence[ComparedRow]], name: str = OWN_NAME
) -> dict[str, list[ComparedRow]]:
    """The measured rows of every dataset of an evaluation: its own mean, then the peers."""
    return {
        dataset: [measured_row(dataset, mean, results.protocol.title, name, "ours"), *peers.get(dataset, ())]
        for dataset, mean in results.datasets.items()
    }


def benchmark_tables(measured: Mapping[str, Sequence[ComparedRow]]) -> list[BenchmarkTable]:
    """A table per dataset of its measured rows and the published ones; none where there is nothing to compare."""
    tables = []
    for dataset, rows in measured.items():
        known = published(dataset)
        every = sorted([*rows, *(known.rows if known else ())], key=lambda row: list(ORIGINS).index(row.origin))
        if len(every) < 2:
            continue
        order = dict.fromkeys([*FIRST, *METRIC_NAMES])
        metrics = tuple(name for name in order if any(name in row.metrics for row in every))
        title = f"{dataset}: {known.title}" if known and known.title != dataset else dataset
        tables.append(BenchmarkTable(dataset, title, metrics, tuple(every), known.cautions if known else ()))
    return tables


def shared_cautions(tables: Sequence[BenchmarkTable]) -> tuple[str, ...]:
    """The cautions that all tables with published rows have, to be written once."""
    every = [table.cautions for table in tables if table.cautions]
    return tuple(caution for caution in (every[0] if every else ()) if all(caution in one for one in every))


def benchmark_grids(measured: Mapping[str, Sequence[ComparedRow]]) -> list[Grid]:
    """The tables of `benchmark_tables` as text, with the notes and cautions that belong beside the numbers."""
    return [_grid(table) for table in benchmark_tables(measured)]


def _grid(table: BenchmarkTable) -> Grid:
    lines = []
    for number, row in enumerate(table.rows):
        mark = f" ({table.mark(row)})" if row.note else ""
        starts = number > 0 and row.origin != table.rows[number - 1].origin
        lines.append(Line((row.name + mark, *table.cells(row)), row.origin == "ours", starts))
    numbered = [f"({number}) {note}." for number, note in enumerate(table.notes, 1)]
    return Grid(
        caption=f"{table.title}, means over classes in percent",
        label=f"benchmark-{table.dataset}",
        header=("Method", *map(short_title, table.metrics)),
        lines=tuple(lines),
        notes=(*numbered, f"{DASH} means not published or not defined.", *table.cautions),
    )


def published_rows(dataset: str) -> list[ComparedRow]:
    """The published rows of the benchmark with this name; none for another dataset."""
    found = published(dataset)
    return list(found.rows) if found else []


def published(dataset: str) -> Published | None:
    """What is published about the benchmark with this name, in any of its usual spellings; None for another dataset."""
    return _benchmarks().get(_plain(dataset))


@cache
def _benchmarks() -> dict[str, Published]:
    body = yaml.safe_load((files("fmad_dist.report") / "published.yaml").read_text())
    known: dict[str, Published] = {}
    for entry in body["benchmarks"]:
        used = [body["sources"][row["source"]] for row in entry["rows"]]
        of_sources = [caution for source in used for caution in source.get("cautions", [])]
        benchmark = Published(
            title=entry["title"],
            num_classes=entry["num_classes"],
            rows=tuple(_row(row, body["sources"]) for row in entry["rows"]),
            cautions=tuple(dict.fromkeys([*body["cautions"], *of_sources, *entry.get("cautions", [])])),
        )
        known |= {_plain(name): benchmark for name in entry["names"]}
    return known


def _row(entry: dict[str, Any], sources: dict[str, Any]) -> ComparedRow:
    note = "; ".join(filter(None, (sources[entry["source"]]["text"], entry.get("note"))))
    metrics = {name: round(percent / 100, 6) for name, percent in entry["metrics"].items()}
    return ComparedRow(entry["name"], "published", note, metrics)


def _plain(dataset: str) -> str:
    return re.sub(r"[^a-z0-9]", "", dataset.lower())
