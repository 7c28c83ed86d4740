"""The results of an evaluation in the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "aupro": "AUPRO",
}

AREAS = {"au_spro@0.05": "AU-sPRO .05", "au_spro_map@0.05": "AU-sPRO .05 on the map"}  # shown where a benchmark has it


def read_results(folder: Path) -> dict[str, Any]:
    """The content of `<folder>/results.json`."""
    return json.loads((folder / "results.json").read_text())


def print_summary(folder: Path) -> None:
    """A table of all classes and their mean, and where the files are."""
    results = read_results(folder)
    areas = [name for name in results["mean"]["areas"] if name in AREAS]
    table = Table(title=f"protocol {results['protocol']['name']}")
    table.add_column("class", no_wrap=True, overflow="fold")
    for title in ("images", *COLUMNS.values(), *(AREAS[name] for name in areas)):
        table.add_column(title, justify="right", no_wrap=True)
    for name, values in results["classes"].items():
        table.add_row(name, str(values["num_images"]), *_numbers(values, areas))
    table.add_section()
    table.add_row("mean", "", *_numbers(results["mean"], areas), style="bold")
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    print(f"report: {folder / 'report.html'}")


def _numbers(values: dict[str, Any], areas: list[str]) -> list[str]:
    found = [values[column] for column in COLUMNS] + [values["areas"].get(name) for name in areas]
    return [_number(value) for value in found]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
