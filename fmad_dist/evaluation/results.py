"""Metrics of classes, datasets and everything, and the files they are written to."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fmad_dist.evaluation.curves import average_precision, best_f1, pro_curve, rank_pixels, rank_scores, roc_curve
from fmad_dist.evaluation.histogram import KEY_BITS, PixelHistogram
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.storage import Store

RESULTS_NAME, TABLE_NAME, SCORES_NAME = "results.json", "results.csv", "scores.csv"
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
    """The image score of one sample; label 0 normal, 1 anomalous."""

    sample_id: str
    class_name: str
    label: int
    defect_type: str
    score: float


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class. `undefined` gives the reason of every NaN; `num_empty_masks` counts defects without a mask pixel.

    `histogram_bits` of 32 says the pixel metrics are exact; below, `pixel_auroc_bound` and `aupro_bound` limit how far
    those two can be from their exact values.
    """

    metrics: Metrics
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


def class_result(
    scores: Sequence[ScoreRow], histogram: PixelHistogram, num_empty_masks: int, protocol: Protocol
) -> ClassResult:
    """All metrics of one class from its image scores and its pixels."""
    values, undefined = _image_metrics(scores)
    pixel_values, pixel_undefined, bounds = _pixel_metrics(histogram, protocol.fpr_limit)
    num_anomalous = sum(row.label for row in scores)
    return ClassResult(
        metrics=Metrics(**values, **pixel_values),
        undefined=undefined | pixel_undefined,
        num_images=len(scores),
        num_normal=len(scores) - num_anomalous,
        num_anomalous=num_anomalous,
        num_regions=histogram.num_regions,
        num_empty_masks=num_empty_masks,
        histogram_bits=histogram.bits,
        pixel_auroc_bound=bounds[0],
        aupro_bound=bounds[1],
    )


def mean_result(classes: Sequence[ClassResult]) -> MeanResult:
    table = np.array([astuple(result.metrics) for result in classes], dtype=np.float64)  # (classes, metrics)
    means, undefined = {}, {}
    for name, column in zip(METRIC_NAMES, table.T, strict=True):
        defined = column[~np.isnan(column)]
        means[name] = math.fsum(defined) / defined.size if defined.size else NAN
        if defined.size < column.size:
            undefined[name] = column.size - defined.size
    return MeanResult(Metrics(**means), undefined, len(classes), sum(result.num_images for result in classes))


def _image_metrics(scores: Sequence[ScoreRow]) -> tuple[dict[str, float], dict[str, str]]:
    names = METRIC_NAMES[:3]
    labels = np.array([row.label for row in scores], dtype=np.int64)
    if not labels.any():
        return {}, dict.fromkeys(names, "no anomalous images")
    if labels.all():
        return {}, dict.fromkeys(names, "no normal images")
    ranked = rank_scores(np.array([row.score for row in scores], dtype=np.float64), labels)
    values = (roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0])
    return dict(zip(names, values, strict=True)), {}


def _pixel_metrics(
    histogram: PixelHistogram, fpr_limit: float
) -> tuple[dict[str, float], dict[str, str], tuple[float, float]]:
    names = METRIC_NAMES[3:]
    ranked = rank_pixels(histogram)
    if not ranked.num_anomalous:
        return {}, dict.fromkeys(names, "no anomalous pixels"), (NAN, NAN)
    if not ranked.num_normal:
        return {}, dict.fromkeys(names, "no normal pixels"), (NAN, NAN)
    roc, pro = roc_curve(ranked), pro_curve(histogram)
    values = (roc.area(), average_precision(ranked), best_f1(ranked)[0], pro.area(fpr_limit))
    exact = histogram.bits == KEY_BITS
    bounds = (0.0, 0.0) if exact else (roc.largest_tie(), pro.largest_tie(fpr_limit))
    return dict(zip(names, values, strict=True)), {}, bounds


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.csv and scores.csv into the folder `out`, each completely or not at all.

    NaN is null in JSON and empty in CSV.
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
        "classes": {name: _flat(result) for name, result in results.classes.items()},
        "datasets": {name: _flat(result) for name, result in results.datasets.items()},
        "mean": _flat(results.mean),
    }


def _flat(result: ClassResult | MeanResult) -> dict[str, Any]:
    rest = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "metrics"}
    values = dict(zip(METRIC_NAMES, astuple(result.metrics), strict=True)) | rest
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _results_csv(results: Results) -> str:
    columns = ["name", "kind", *METRIC_NAMES, "num_images", "num_normal", "num_anomalous", "num_regions", "num_classes"]
    rows: list[tuple[str, str, ClassResult | MeanResult]] = [(n, "class", r) for n, r in results.classes.items()]
    rows += [(name, "dataset mean", result) for name, result in results.datasets.items()]
    rows.append(("mean", "mean", results.mean))
    table = [{"name": name, "kind": kind} | _flat(result) for name, kind, result in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def _scores_csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["sample_id", "class", "label", "defect_type", "score"])
    writer.writerows(astuple(row) for row in results.scores)
    return buffer.getvalue()
