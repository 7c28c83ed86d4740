"""The files of an evaluation that programs read: results.json, results.csv and scores.csv; and results.json in the
terminal."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from fmad_dist.base.console import print_table
from fmad_dist.metrics.results import METRIC_NAMES, Figures, Results
from fmad_dist.report.titles import SHORT_TITLES
from fmad_dist.storage import Store

RESULTS_NAME, TABLE_NAME, SCORES_NAME = "results.json", "results.csv", "scores.csv"
EVALUATION_FILES = (RESULTS_NAME, TABLE_NAME, SCORES_NAME, "results.md", "results.tex", "speed.json", "report.html")
COUNTS = ("num_images", "num_normal", "num_anomalous", "num_regions", "num_classes")
TERMINAL_AREAS = {  # titles of what only some benchmarks have
    "au_spro@0.05": "AU-sPRO .05",
    "au_spro_map@0.05": "AU-sPRO .05 on the map",
    "sample_auroc": "S-AUROC",
}


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.csv and scores.csv into the folder `out`, each completely or not at all.

    NaN is null in JSON and empty in CSV. Every row of the tables ends with the title of the protocol, which says
    whether it is biased.
    """
    store = Store(out)
    store.write(SCORES_NAME, _scores_csv(results))
    store.write(TABLE_NAME, _results_csv(results))
    text = json.dumps(results_json(results), indent=2, allow_nan=False) + "\n"
    store.write(RESULTS_NAME, text.encode())  # last: it says that the others are there


def read_results(folder: Path) -> dict[str, Any]:
    """The content of `<folder>/results.json`."""
    return json.loads((folder / RESULTS_NAME).read_text())


def results_json(results: Results) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "protocol": results.protocol.model_dump(mode="json"),
        "protocol_title": results.protocol.title,
        "protocol_note": results.protocol.note,
        "classes": _all_values(results.classes),
        "datasets": _all_values(results.datasets),
        "mean": _values(results.mean),
    }


def print_summary(folder: Path) -> None:
    """Print a table of all classes and their mean from `<folder>/results.json`, and where the report is."""
    results = read_results(folder)
    areas = [name for name in results["mean"]["areas"] if name in TERMINAL_AREAS]
    table = Table(title=f"protocol {results['protocol_title']}")
    table.add_column("class", no_wrap=True, overflow="fold")
    for title in ("images", *SHORT_TITLES.values(), *(TERMINAL_AREAS[name] for name in areas)):
        table.add_column(title, justify="right", no_wrap=True)
    for name, values in results["classes"].items():
        table.add_row(name, str(values["num_images"]), *_numbers(values, areas))
    table.add_section()
    table.add_row("mean", "", *_numbers(results["mean"], areas), style="bold")
    print_table(table)
    note = results["protocol_note"]
    print(*([note] if note else []), f"report: {folder / 'report.html'}", sep="\n")


def _numbers(values: dict[str, Any], areas: list[str]) -> list[str]:
    found = [values[metric] for metric in SHORT_TITLES] + [values["areas"].get(name) for name in areas]
    return ["-" if value is None else f"{value:.3f}" for value in found]


def _all_values(named: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    return {name: _values(figures) for name, figures in named.items()}


def _values(figures: Figures) -> dict[str, Any]:
    """Metrics, then the other fields, by name; None for NaN."""
    rest = {field.name: getattr(figures, field.name) for field in fields(figures) if field.name != "metrics"}
    if "defects" in rest:
        rest["defects"] = _all_values(rest["defects"])
    values = asdict(figures.metrics) | rest
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _results_csv(results: Results) -> bytes:
    named: list[tuple[str, str, Figures]] = []
    for name, result in results.classes.items():
        named.append((name, "class", result))
        named += [(f"{name}/{defect}", "defect type", found) for defect, found in result.defects.items()]
    named += [(name, "dataset mean", mean) for name, mean in results.datasets.items()]
    named.append(("mean", "mean", results.mean))
    areas = sorted({name for result in results.classes.values() for name in result.areas})
    columns = (*METRIC_NAMES, *areas, *COUNTS)
    rows = [(name, kind, _values(figures) | figures.areas) for name, kind, figures in named]
    table = [(name, kind, *map(values.get, columns), results.protocol.title) for name, kind, values in rows]
    return _csv([("name", "kind", *columns, "protocol"), *table])


def _scores_csv(results: Results) -> bytes:
    header = ("sample_id", "class", "label", "defect_type", "score", "group", "protocol")
    return _csv([header, *((*astuple(row)[:-1], results.protocol.title) for row in results.scores)])


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
