"""From the state of a class to its metrics, of all its images and of every type of defect."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from fmad_dist.evaluation.bootstrap import Draws, class_draws, intervals, mean_draws
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
from fmad_dist.evaluation.set_scores import final_rows
from fmad_dist.evaluation.state import ClassState, dataset_of
from fmad_dist.evaluation.strips import strip_metrics


def compute_results(states: dict[str, ClassState], protocol: Protocol) -> Results:
    """The metrics of every class, the mean per dataset and the mean over all classes."""
    rows, draws, classes = final_rows(states, protocol), {}, {}
    for name, own in rows.items():
        draws[name], of_types = class_draws(own, states[name].pixels, protocol.fpr_limit, without=protocol.estimated)
        classes[name] = class_result(states[name], own, draws[name], of_types, protocol)
    of_dataset: dict[str, list[str]] = {}
    for name in classes:
        of_dataset.setdefault(dataset_of(name), []).append(name)
    datasets = {
        dataset: mean_result([classes[name] for name in names], [draws[name] for name in names])
        for dataset, names in sorted(of_dataset.items())
    }
    mean = mean_result(list(classes.values()), [draws[name] for name in classes])
    scores = tuple(sorted(row for own in rows.values() for row in own))
    return Results(protocol, classes, datasets, mean, scores)


def class_result(
    state: ClassState, scores: Sequence[ScoreRow], draws: Draws, of_types: dict[str, Draws], protocol: Protocol
) -> ClassResult:
    """All metrics of one class, with the draws for its intervals and for those of its types of defect."""
    histogram = state.merged_histogram()
    values, undefined = _image_metrics(scores)
    pixels = _pixel_figures(histogram, protocol)
    defects = {name: _defect_result(state, scores, name, draws, protocol) for name, draws in of_types.items()}
    singly = [defects[kind] for (_, kind), found in sorted(state.singly.items()) if found.num_regions]
    areas = pixels.areas | _means_of_types(singly) | _of_samples(scores)
    num_anomalous = sum(row.label for row in scores)
    metrics = Metrics(**values, **pixels.metrics)
    return ClassResult(
        metrics=metrics,
        areas=areas,
        intervals=intervals(metrics, draws),
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
    metrics = Metrics(**means)
    return MeanResult(metrics, areas, intervals(metrics, mean_draws(draws)), undefined, len(classes), num_images)


def _defect_result(
    state: ClassState, scores: Sequence[ScoreRow], defect_type: str, draws: Draws, protocol: Protocol
) -> DefectResult:
    scores = [row for row in scores if row.label == 0 or row.defect_type == defect_type]
    histogram = state.merged_histogram(defect_type)
    pixels = _pixel_figures(histogram, protocol)
    areas = pixels.areas | _spro_areas(state, defect_type, protocol)
    metrics = Metrics(**_image_metrics(scores)[0], **pixels.metrics)
    return DefectResult(metrics, areas, intervals(metrics, draws), sum(row.label for row in scores))


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


BOUNDED = ("pixel_auroc", "aupro")


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
    metrics = dict(zip(names, values, strict=True)) | strip_metrics(histogram, protocol)
    exact = histogram.bits == KEY_BITS
    bounds = [0.0, 0.0] if exact else [roc.largest_tie(), pro.largest_tie(protocol.fpr_limit)]
    bounds = [NAN if name in protocol.estimated else bound for name, bound in zip(BOUNDED, bounds, strict=True)]
    undefined = {name: "too few thresholds of equal width" for name, value in metrics.items() if math.isnan(value)}
    return PixelFigures(metrics, _areas("aupro", pro, protocol.more_fpr_limits), undefined, (bounds[0], bounds[1]))


def _areas(name: str, curve: Curve, limits: Sequence[float]) -> dict[str, float]:
    return {f"{name}@{limit:g}": curve.area(limit) for limit in limits}


def _means_of_types(defects: Sequence[DefectResult]) -> dict[str, float]:
    """The mean over the types of defect that are annotated singly."""
    if not defects:
        return {}
    found = _mean_areas([{n: v for n, v in defect.areas.items() if n.startswith("au_spro")} for defect in defects])
    aurocs = [defect.metrics.image_auroc for defect in defects]
    return found if any(map(math.isnan, aurocs)) else found | {"image_auroc_of_types": math.fsum(aurocs) / len(aurocs)}


def _of_samples(rows: Sequence[ScoreRow]) -> dict[str, float]:
    """AUROC of physical parts, where some have several views and both labels occur: a part is anomalous when any of its
    views is, and its score is that of its highest view (Real-IAD). An image without a group is a part of its own.
    """
    parts: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        parts.setdefault(("", row.group) if row.group else (row.sample_id, ""), []).append(row)
    labels = np.array([max(view.label for view in views) for views in parts.values()])
    if len(parts) == len(rows) or not 0 < labels.sum() < labels.size:
        return {}
    scores = np.array([max(view.score for view in views) for views in parts.values()])
    return {"sample_auroc": roc_curve(rank_scores(scores, labels)).area()}


def _mean_areas(every: Sequence[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for areas in every for name in areas})
    values = {name: [areas[name] for areas in every if name in areas] for name in names}
    return {name: math.fsum(found) / len(found) for name, found in values.items()}
