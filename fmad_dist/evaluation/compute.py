"""From the state of a class to its metrics, of all its images and of every type of defect."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from fmad_dist.evaluation.bootstrap import Draws, draw_metrics, intervals, mean_draws
from fmad_dist.evaluation.curves import (
    Curve,
    average_precision,
    best_f1,
    pro_curve,
    rank_pixels,
    rank_scores,
    roc_curve,
)
from fmad_dist.evaluation.histogram import KEY_BITS, PixelHistogram
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.results import (
    METRIC_NAMES,
    NAN,
    ClassResult,
    DefectResult,
    MeanResult,
    Metrics,
    Results,
    ScoreRow,
)
from fmad_dist.evaluation.state import ClassState, dataset_of


def compute_results(states: dict[str, ClassState], protocol: Protocol) -> Results:
    """The metrics of every class, the mean per dataset and the mean over all classes."""
    draws = {name: draw_metrics(list(state.scores.values())) for name, state in states.items()}
    classes = {name: class_result(state, draws[name], protocol) for name, state in sorted(states.items())}
    of_dataset: dict[str, list[str]] = {}
    for name in classes:
        of_dataset.setdefault(dataset_of(name), []).append(name)
    datasets = {
        dataset: mean_result([classes[name] for name in names], [draws[name] for name in names])
        for dataset, names in sorted(of_dataset.items())
    }
    mean = mean_result(list(classes.values()), [draws[name] for name in classes])
    scores = tuple(sorted(row for state in states.values() for row in state.scores.values()))
    return Results(protocol, classes, datasets, mean, scores)


def class_result(state: ClassState, draws: Draws, protocol: Protocol) -> ClassResult:
    """All metrics of one class."""
    scores, histogram = list(state.scores.values()), state.merged_histogram()
    values, undefined = _image_metrics(scores)
    pixels = _pixel_figures(histogram, protocol)
    areas = pixels.areas
    defects = {name: _defect_result(state, name, protocol) for name in _defect_types(state)}
    areas |= _means_of_types([defects[kind] for (_, kind), found in sorted(state.singly.items()) if found.num_regions])
    num_anomalous = sum(row.label for row in scores)
    return ClassResult(
        metrics=Metrics(**values, **pixels.metrics),
        areas=areas,
        intervals=intervals(draws),
        defects=defects,
        undefined=undefined | pixels.undefined,
        num_images=len(scores),
        num_normal=len(scores) - num_anomalous,
        num_anomalous=num_anomalous,
        num_regions=histogram.num_regions,
        num_empty_masks=state.num_empty_masks,
        histogram_bits=histogram.bits,
        pixel_auroc_bound=pixels.bounds[0],
        aupro_bound=pixels.bounds[1],
    )


def mean_result(classes: Sequence[ClassResult], draws: Sequence[Draws]) -> MeanResult:
    """The unweighted mean of every metric over the classes that define it."""
    table = np.array([astuple(result.metrics) for result in classes], dtype=np.float64)  # (classes, metrics)
    means, undefined = {}, {}
    for name, column in zip(METRIC_NAMES, table.T, strict=True):
        defined = column[~np.isnan(column)]
        means[name] = math.fsum(defined) / defined.size if defined.size else NAN
        if defined.size < column.size:
            undefined[name] = column.size - defined.size
    areas = _mean_areas([result.areas for result in classes])
    num_images = sum(result.num_images for result in classes)
    return MeanResult(Metrics(**means), areas, intervals(mean_draws(draws)), undefined, len(classes), num_images)


def _defect_types(state: ClassState) -> list[str]:
    return sorted({defect_type for label, defect_type in state.histograms if label == 1})


def _defect_result(state: ClassState, defect_type: str, protocol: Protocol) -> DefectResult:
    scores = [row for row in state.scores.values() if row.label == 0 or row.defect_type == defect_type]
    histogram = state.merged_histogram(defect_type)
    pixels = _pixel_figures(histogram, protocol)
    areas = pixels.areas | _spro_areas(state, defect_type, protocol)
    return DefectResult(Metrics(**_image_metrics(scores)[0], **pixels.metrics), areas, sum(row.label for row in scores))


def _spro_areas(state: ClassState, defect_type: str, protocol: Protocol) -> dict[str, float]:
    """AU-sPRO where it is defined; under a name of its own where it was measured on the map."""
    histogram = state.merged_singly(defect_type)
    if not histogram.num_regions or not rank_pixels(histogram).num_normal:
        return {}
    return _areas("au_spro" if state.native else "au_spro_map", pro_curve(histogram), protocol.spro_limits)


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


@dataclass(frozen=True, slots=True)
class PixelFigures:
    """Pixel metrics by name, areas, reasons of what is undefined; `bounds` say how far pixel AUROC and AUPRO can be
    from their exact values."""

    metrics: dict[str, float]
    areas: dict[str, float]
    undefined: dict[str, str]
    bounds: tuple[float, float] = (NAN, NAN)


def _pixel_figures(histogram: PixelHistogram, protocol: Protocol) -> PixelFigures:
    names = METRIC_NAMES[3:]
    ranked = rank_pixels(histogram)
    if not ranked.num_anomalous:
        return PixelFigures({}, {}, dict.fromkeys(names, "no anomalous pixels"))
    if not ranked.num_normal:
        return PixelFigures({}, {}, dict.fromkeys(names, "no normal pixels"))
    roc, pro = roc_curve(ranked), pro_curve(histogram)
    values = (roc.area(), average_precision(ranked), best_f1(ranked)[0], pro.area(protocol.fpr_limit))
    exact = histogram.bits == KEY_BITS
    bounds = (0.0, 0.0) if exact else (roc.largest_tie(), pro.largest_tie(protocol.fpr_limit))
    areas = _areas("aupro", pro, protocol.more_fpr_limits)
    return PixelFigures(dict(zip(names, values, strict=True)), areas, {}, bounds)


def _areas(name: str, curve: Curve, limits: Sequence[float]) -> dict[str, float]:
    return {f"{name}@{limit:g}": curve.area(limit) for limit in limits}


def _means_of_types(defects: Sequence[DefectResult]) -> dict[str, float]:
    """The mean over the types of defect that are annotated singly."""
    if not defects:
        return {}
    found = _mean_areas([{n: v for n, v in defect.areas.items() if n.startswith("au_spro")} for defect in defects])
    aurocs = [defect.metrics.image_auroc for defect in defects]
    return found if any(map(math.isnan, aurocs)) else found | {"image_auroc_of_types": math.fsum(aurocs) / len(aurocs)}


def _mean_areas(every: Sequence[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for areas in every for name in areas})
    values = {name: [areas[name] for areas in every if name in areas] for name in names}
    return {name: math.fsum(found) / len(found) for name, found in values.items()}
