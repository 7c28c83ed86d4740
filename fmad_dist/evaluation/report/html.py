"""Put an evaluation on one HTML page that opens offline."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fmad_dist.evaluation.report import charts
from fmad_dist.evaluation.report.tiles import Gallery, gallery
from fmad_dist.evaluation.results import METRIC_NAMES, ClassResult, MeanResult, Results
from fmad_dist.evaluation.state import EvaluationState, dataset_of
from fmad_dist.storage import Store

METRIC_TITLES = {
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1max": "F1max",
    "pixel_auroc": "AUROC",
    "pixel_ap": "AP",
    "pixel_f1max": "F1max",
    "aupro": "AUPRO",
}
HEADLINE = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
}
BOUND_WORTH_A_NOTE = 1e-4


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric in percent, or a dash with the reason in `note`; `lowest` marks the weakest class of the column."""

    text: str
    note: str = ""
    lowest: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the summary table; `kind` is class, dataset or mean."""

    name: str
    kind: str
    anchor: str
    counts: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of percentages: `titles` of the columns, and rows of a name, its kind, a count and the cells."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, str, str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class ClassSection:
    name: str
    anchor: str
    counts: str
    charts: tuple[charts.Chart, ...]
    gallery: Gallery
    notes: tuple[str, ...]
    types: Table | None  # by type of defect, when there are several


def write_report(results: Results, state: EvaluationState, out: Path, *, title: str, facts: dict[str, str]) -> Path:
    """Write the page to the file `out`, completely or not at all, and return its path.

    `state` is the merged state that `results` were computed from; `facts` is where the numbers come from, by name
    (model, manifests, configuration, ...). The page loads nothing from anywhere.
    """
    environment = Environment(
        loader=PackageLoader("fmad_dist.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        headline=[(name, _percent(getattr(results.mean.metrics, key))) for key, name in HEADLINE.items()],
        mean=results.mean,
        mean_interval=_interval(results.mean.intervals["image_auroc"]) if results.mean.intervals else "",
        metric_titles=METRIC_TITLES,
        rows=_table(results),
        any_lowest=bool(_lowest(results)),
        areas=_areas(results),
        sections=[_section(name, results, state) for name in results.classes],
        facts=facts,
        protocol={name.replace("_", " "): value for name, value in results.protocol.model_dump().items()},
        left_out=results.mean.undefined,
        frame=charts,
    )
    Store(out.parent).write(out.name, page.encode())
    return out


def _table(results: Results) -> list[Row]:
    """The overall mean, then every dataset's mean followed by its classes."""
    rows = [_row("Mean over classes", "mean", "", results.mean, {})]
    lowest = _lowest(results)
    for dataset, mean in results.datasets.items():
        rows.append(_row(dataset, "dataset", "", mean, {}))
        for name, result in results.classes.items():
            if dataset_of(name) == dataset:
                rows.append(_row(name.split("/", 1)[-1], "class", _anchor(name), result, lowest))
    return rows


def _areas(results: Results) -> Table:
    """The areas at further limits, and what only some benchmarks have, in the order of the summary's rows."""
    names = tuple(results.mean.areas)
    found: list[tuple[str, str, ClassResult | MeanResult]] = [("Mean over classes", "mean", results.mean)]
    for dataset, mean in results.datasets.items():
        found.append((dataset, "dataset", mean))
        classes = [(n.split("/", 1)[-1], "class", r) for n, r in results.classes.items() if dataset_of(n) == dataset]
        found += classes
    rows = [(name, kind, "", _cells(result.areas, names)) for name, kind, result in found]
    return Table(tuple(map(_area_title, names)), tuple(rows))


def _types(result: ClassResult) -> Table | None:
    if len(result.defects) < 2:
        return None
    areas = tuple(sorted({name for defect in result.defects.values() for name in defect.areas if "spro" in name}))
    rows = []
    for name, defect in result.defects.items():
        metrics = tuple(map(_percent, asdict(defect.metrics).values()))
        rows.append((name, "class", str(defect.num_anomalous), metrics + _cells(defect.areas, areas)))
    titles = [f"{name.split('_')[0]} {title}".removeprefix("aupro ") for name, title in METRIC_TITLES.items()]
    return Table((*titles, *map(_area_title, areas)), tuple(rows))


def _cells(areas: dict[str, float], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_percent(areas.get(name, math.nan)) for name in names)


def _area_title(name: str) -> str:
    kind, _, limit = name.partition("@")
    titles = {"aupro": "AUPRO", "au_spro": "AU-sPRO", "au_spro_map": "AU-sPRO on the map"}
    title = titles.get(kind, "image AUROC of types")
    return f"{title} {limit}".strip()


def _row(name: str, kind: str, anchor: str, result: ClassResult | MeanResult, lowest: dict[str, float]) -> Row:
    cells = []
    for metric, value in asdict(result.metrics).items():
        reason: Any = result.undefined.get(metric, "")
        note = f"left out: {reason} undefined" if isinstance(reason, int) else reason
        cells.append(Cell(_percent(value), note, lowest=value == lowest.get(metric)))
    if isinstance(result, ClassResult):
        counts = f"{result.num_normal} + {result.num_anomalous}"
    else:
        counts = f"{result.num_images}"
    return Row(name, kind, anchor, counts, tuple(cells))


def _lowest(results: Results) -> dict[str, float]:
    """The lowest value of each metric among the classes, when there are enough of them to compare."""
    if len(results.classes) < 3:
        return {}
    tables = [asdict(result.metrics) for result in results.classes.values()]
    columns = {name: [table[name] for table in tables if not math.isnan(table[name])] for name in METRIC_NAMES}
    return {name: min(values) for name, values in columns.items() if len(set(values)) > 1}


def _section(name: str, results: Results, state: EvaluationState) -> ClassSection:
    result, class_state = results.classes[name], state.classes[name]
    rows = [row for row in results.scores if row.class_name == name]
    histogram = class_state.merged_histogram()
    drawn = (
        charts.score_chart(rows),
        charts.roc_chart(rows, histogram, result),
        charts.pro_chart(histogram, result, results.protocol.fpr_limit),
    )
    return ClassSection(
        name=name,
        anchor=_anchor(name),
        counts=f"{result.num_normal} normal and {result.num_anomalous} anomalous images, {result.num_regions} regions",
        charts=tuple(chart for chart in drawn if chart is not None),
        gallery=gallery(class_state.board),
        notes=tuple(_notes(result)),
        types=_types(result),
    )


def _notes(result: ClassResult) -> list[str]:
    """What a reader of this class's numbers has to know."""
    notes = [f"Image AUROC {_interval(result.intervals['image_auroc'])}."] if result.intervals else []
    for reason in dict.fromkeys(result.undefined.values()):
        names = ", ".join(name.replace("_", " ") for name, why in result.undefined.items() if why == reason)
        notes.append(f"Undefined, because the class has {reason}: {names}.")
    if result.num_empty_masks:
        notes.append(
            f"{result.num_empty_masks} anomalous images have an empty mask; they count for the image metrics, and all "
            "their pixels count as normal."
        )
    if any(name.startswith("au_spro_map") for name in result.areas):
        notes.append(
            "AU-sPRO was measured on the map, because the dataset stores resized masks only; the official one is "
            "measured at the size of the images."
        )
    if max(result.pixel_auroc_bound, result.aupro_bound) > BOUND_WORTH_A_NOTE:
        notes.append(
            f"Pixel scores were binned to {result.histogram_bits} bits: pixel AUROC may be off by up to "
            f"{result.pixel_auroc_bound:.1g}, AUPRO by up to {result.aupro_bound:.1g}."
        )
    return notes


def _interval(interval: tuple[float, float]) -> str:
    return f"{_percent(interval[0])} to {_percent(interval[1])} (95 %, bootstrap over images)"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _anchor(name: str) -> str:
    return "class-" + re.sub(r"[^A-Za-z0-9]+", "-", name)
