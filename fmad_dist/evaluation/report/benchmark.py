"""Our means on a benchmark beside those of peers, measured alike, and those that others published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fmad_dist.evaluation.report.grid import Grid, Line, latex, markdown
from fmad_dist.evaluation.report.published import ComparedRow, Origin, published
from fmad_dist.evaluation.report.titles import DASH, percent, short_title
from fmad_dist.evaluation.results import METRIC_NAMES, MeanResult, Results
from fmad_dist.storage import Store
from fmad_dist.wording import counted

OWN_NAME = "fmad, this evaluation"
FIRST = ("image_auroc", "pixel_auroc", "aupro")  # what everyone publishes
ORIGINS: dict[Origin, str] = {"ours": "fmad", "peer": "peers, measured alike", "published": "published"}


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """The rows of one dataset in the order ours, peers, published; `metrics` are those that any row has, FIRST first.

    Equal notes of rows stand once in `notes`; `mark` numbers them from 1.
    """

    dataset: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    cautions: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.note for row in self.rows if row.note))

    def mark(self, row: ComparedRow) -> str:
        return str(self.notes.index(row.note) + 1) if row.note else ""

    def cells(self, row: ComparedRow) -> tuple[str, ...]:
        return tuple(percent(row.metrics.get(name, math.nan)) for name in self.metrics)


def measured_row(dataset: str, mean: MeanResult, protocol: str, name: str, origin: Origin) -> ComparedRow:
    """A row of means that we measured."""
    note = measured_note(dataset, mean.num_classes, protocol)
    metrics = {key: value for key, value in asdict(mean.metrics).items() if not math.isnan(value)}
    return ComparedRow(name, origin, note, metrics)


def measured_note(dataset: str, num_classes: int, protocol: str) -> str:
    """Names the protocol, and the classes when some are missing."""
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
    """What has to be said about every table that has published rows, to be said once."""
    every = [table.cautions for table in tables if table.cautions]
    return tuple(caution for caution in (every[0] if every else ()) if all(caution in one for one in every))


def benchmark_grids(tables: Sequence[BenchmarkTable]) -> list[Grid]:
    """The tables as text, with the notes and cautions that belong beside the numbers."""
    return [_grid(table) for table in tables]


def write_benchmark(measured: Mapping[str, Sequence[ComparedRow]], out: Path, stem: str = "benchmark") -> None:
    """Write the tables of `benchmark_tables` to `<out>/<stem>.md` and `<out>/<stem>.tex`."""
    grids = benchmark_grids(benchmark_tables(measured))
    Store(out).write(f"{stem}.md", "\n".join(map(markdown, grids)).encode())
    Store(out).write(f"{stem}.tex", "\n".join(map(latex, grids)).encode())


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
