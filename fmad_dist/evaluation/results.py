"""What an evaluation says about classes, datasets and everything, and the files it is written to."""

import csv
import io
import json
import math
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.storage import Store

RESULTS_NAME, TABLE_NAME, SCORES_NAME = "results.json", "results.csv", "scores.csv"
EVALUATION_FILES = (  # what an evaluation writes
    RESULTS_NAME,
    TABLE_NAME,
    SCORES_NAME,
    "results.md",
    "results.tex",
    "speed.json",
    "report.html",
)
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics in [0, 1], higher is better, NaN where undefined. F1max uses the best threshold of the test set."""

    image_auroc: float = NAN
    image_ap: float = NAN
    image_f1max: float = NAN
    pixel_auroc: float = NAN
    pixel_ap: float = NAN
    pixel_f1max: float = NAN
    aupro: float = NAN


METRIC_NAMES = tuple(field.name for field in fields(Metrics))


@dataclass(frozen=True, slots=True, order=True)
class ScoreRow:
    """The image score of one sample; label 0 normal, 1 anomalous; `group` names its part where parts have views,
    `map_sum` is kept for protocols whose image scores are made of several sums of the whole test set."""

    sample_id: str
    class_name: str
    label: int
    defect_type: str
    score: float
    group: str = ""
    map_sum: float = 0.0


@dataclass(frozen=True, slots=True)
class DefectResult:
    """The images with one type of defect, with all normal images of the class; `areas` as in ClassResult."""

    metrics: Metrics
    areas: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    num_anomalous: int


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class. `undefined` gives the reason of every NaN; `num_empty_masks` counts defects without a mask pixel.

    `areas` has, where defined, the AUPRO at further limits of the false positive rate, as `aupro@0.05`. Where defects
    are annotated singly (MVTec LOCO AD) it has `au_spro@0.05` and `image_auroc_of_types` too, each the mean over types
    of defect, as in the official evaluation; `au_spro_map@0.05` instead where only resized masks are stored, measured
    on the map. Where parts have several views (Real-IAD) it has `sample_auroc`.

    `histogram_bits` of 32 says the pixel metrics are exact; below, `pixel_auroc_bound` and `aupro_bound` limit how far
    those two can be from their exact values.
    """

    metrics: Metrics
    areas: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 % by bootstrap over images
    defects: dict[str, DefectResult]
    undefined: dict[str, str]
    num_images: int
    num_normal: int
    num_anomalous: int
    num_regions: int
    num_empty_masks: int
    histogram_bits: int
    pixel_auroc_bound: float
    aupro_bound: float


@dataclass(frozen=True, slots=True)
class MeanResult:
    """The unweighted mean over classes; `undefined` counts the classes that are left out of each metric's mean."""

    metrics: Metrics
    areas: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    undefined: dict[str, int]
    num_classes: int
    num_images: int


@dataclass(frozen=True, slots=True)
class Results:
    """Everything an evaluation says: classes by `<dataset>/<class>`, datasets and scores in sorted order."""

    protocol: Protocol
    classes: dict[str, ClassResult]
    datasets: dict[str, MeanResult]
    mean: MeanResult
    scores: tuple[ScoreRow, ...]


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.csv and scores.csv into the folder `out`, each completely or not at all.

    NaN is null in JSON and empty in CSV. Every row of the tables ends with the title of the protocol, which says
    whether it is biased.
    """
    store = Store(out)
    store.write(SCORES_NAME, _scores_csv(results).encode())
    store.write(TABLE_NAME, _results_csv(results).encode())
    text = json.dumps(results_json(results), indent=2, allow_nan=False) + "\n"
    store.write(RESULTS_NAME, text.encode())  # last: it says that the others are there


def results_json(results: Results) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "protocol": results.protocol.model_dump(mode="json"),
        "protocol_title": results.protocol.title,
        "protocol_note": results.protocol.note,
        "classes": {name: _flat(result) for name, result in results.classes.items()},
        "datasets": {name: _flat(result) for name, result in results.datasets.items()},
        "mean": _flat(results.mean),
    }


def _flat(result: ClassResult | DefectResult | MeanResult) -> dict[str, Any]:
    rest = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "metrics"}
    if isinstance(result, ClassResult):
        rest["defects"] = {name: _flat(defect) for name, defect in result.defects.items()}
    values = dict(zip(METRIC_NAMES, astuple(result.metrics), strict=True)) | rest
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _results_csv(results: Results) -> str:
    areas = sorted({name for result in results.classes.values() for name in result.areas})
    counts = ("num_images", "num_normal", "num_anomalous", "num_regions", "num_classes")
    columns = ["name", "kind", *METRIC_NAMES, *areas, *counts, "protocol"]
    rows: list[tuple[str, str, ClassResult | DefectResult | MeanResult]] = []
    for name, found in results.classes.items():
        rows.append((name, "class", found))
        rows += [(f"{name}/{defect}", "defect type", result) for defect, result in found.defects.items()]
    rows += [(name, "dataset mean", result) for name, result in results.datasets.items()]
    rows.append(("mean", "mean", results.mean))
    protocol = results.protocol.title
    table = [
        {"name": name, "kind": kind, "protocol": protocol} | _flat(result) | result.areas for name, kind, result in rows
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def _scores_csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["sample_id", "class", "label", "defect_type", "score", "group", "protocol"])
    writer.writerows((*astuple(row)[:-1], results.protocol.title) for row in results.scores)
    return buffer.getvalue()
