"""The results as tables for other documents: results.md and results.tex."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fmad_dist.evaluation.report.benchmark import benchmark_grids, benchmark_tables, compared_rows
from fmad_dist.evaluation.report.grid import Grid, Line, escape_markdown, latex, markdown
from fmad_dist.evaluation.report.published import ComparedRow
from fmad_dist.evaluation.report.summary import areas_table, counts, entries, summary_rows
from fmad_dist.evaluation.report.titles import DASH, interval_text, short_title
from fmad_dist.evaluation.results import METRIC_NAMES, Results
from fmad_dist.storage import Store

MARKDOWN_NAME, LATEX_NAME = "results.md", "results.tex"
LATEX_HEAD = r"% Tables of an fmad evaluation. Needs \usepackage{booktabs}; \input this file."


def write_tables(results: Results, out: Path, peers: Mapping[str, Sequence[ComparedRow]] | None = None) -> None:
    """Write results.md and results.tex into the folder `out`: means and classes, intervals, areas, benchmarks."""
    grids = [_summary(results), _intervals(results), _areas(results)]
    grids += benchmark_grids(benchmark_tables(compared_rows(results, peers or {})))
    shown = [grid for grid in grids if len(grid.header) > 1]
    store = Store(out)
    head = f"# fmad evaluation, protocol {results.protocol.title}\n"
    if results.protocol.note:
        head += f"\n{escape_markdown(results.protocol.note)}\n"
    store.write(MARKDOWN_NAME, "\n".join([head, *map(markdown, shown)]).encode())
    store.write(LATEX_NAME, "\n".join([LATEX_HEAD, "", *map(latex, shown)]).encode())


def _summary(results: Results) -> Grid:
    lines = [
        Line((row.name, row.counts, *(cell.text for cell in row.cells)), row.kind != "class", row.kind == "dataset")
        for row in summary_rows(results)
    ]
    return Grid(
        caption=f"Results in percent, protocol {results.protocol.title}",
        label="results",
        header=("Class", "Images", *map(short_title, METRIC_NAMES)),
        lines=tuple(lines),
        notes=(
            "Images: normal + anomalous. F1max takes the best threshold of the test set itself: an upper limit.",
            f"{DASH} means undefined; undefined classes are left out of a mean.",
            *filter(None, [results.protocol.note]),
        ),
    )


def _intervals(results: Results) -> Grid:
    """A column for every metric that has intervals."""
    names = [name for name in METRIC_NAMES if name in results.mean.intervals]
    lines = []
    for entry in entries(results):
        pairs = [entry.result.intervals.get(name) for name in names]
        cells = (interval_text(pair) if pair else DASH for pair in pairs)
        lines.append(Line((entry.name, counts(entry.result), *cells), entry.kind != "class", entry.kind == "dataset"))
    header = ("Class", "Images", *map(short_title, names)) if names else ("Class",)
    return Grid("95 % intervals in percent, bootstrap over images", "intervals", header, tuple(lines))


def _areas(results: Results) -> Grid:
    table = areas_table(results)
    lines = [Line((row.name, *row.cells), row.kind != "class", row.kind == "dataset") for row in table.rows]
    return Grid("Areas at further limits in percent", "areas", ("Class", *table.titles), tuple(lines))
