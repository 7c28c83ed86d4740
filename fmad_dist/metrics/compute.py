"""From the state of a class to its metrics, of all its images and of every type of defect."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.bootstrap import Draws, class_draws, intervals, mean_draws
from fmad_dist.metrics.curves import Curve, average_precision, best_f1, pro_curve, rank_pixels, rank_scores, roc_curve
from fmad_dist.metrics.histogram import KEY_BITS, PixelHistogram
from fmad_dist.metrics.many_images import MANY, poisson_draws
from fmad_dist.metrics.results import (
    IMAGE_METRICS,
    METRIC_NAMES,
    NAN,
    PIXEL_METRICS,
    ClassResult,
    DefectResult,
    MeanResult,
    Metrics,
    Results,
    ScoreRow,
)
from fmad_dist.metrics.state import ClassState, EvaluationState, dataset_of
from fmad_dist.metrics.strips import strip_metrics

TINY = 1e-8  # keeps equal scores finite


def compute_results(state: EvaluationState) -> Results:
    """Compute the metrics of every class, the mean per dataset and the mean over all classes.

    Raises:
        UserError: nothing was scored.
    """
    if not state.classes:
        raise UserError("evaluation: no image was scored; check that the manifest has a test split.")
    states, protocol = state.classes, state.protocol
    rows, draws, classes = final_rows(states, protocol), {}, {}
    for name, own in rows.items():
        resample = class_draws if len(own) < MANY else poisson_draws
        draws[name], of_types = resample(own, states[name].pixels, protocol.fpr_limit, without=protocol.estimated)
        classes[name] = _class_result(states[name], own, draws[name], of_types, protocol)

    def mean(dataset: str | None = None) -> MeanResult:
        names = [name for name in classes if dataset in (None, dataset_of(name))]
        return _mean_result([classes[name] for name in names], [draws[name] for name in names])

    datasets = {dataset: mean(dataset) for dataset in sorted(set(map(dataset_of, classes)))}
    return Results(protocol, classes, datasets, mean(), tuple(sorted(row for own in rows.values() for row in own)))


def final_rows(states: Mapping[str, ClassState], protocol: Protocol) -> dict[str, list[ScoreRow]]:
    """The image scores of every class as the protocol has them, in the order of sample ids.

    Some protocols of others make them of the ranges and sums of all test images of a dataset, each scaled to [0, 1].
    """
    rows = {name: sorted(state.scores.values()) for name, state in sorted(states.items())}
    if not protocol.needs_map_sum:
        return rows
    scaled: dict[str, list[ScoreRow]] = {}
    for dataset in sorted(set(map(dataset_of, rows))):
        own = [row for name, found in rows.items() if dataset_of(name) == dataset for row in found]
        scores = _scaled(row.score for row in own) + _scaled(row.map_sum for row in own)
        for row, score in zip(own, scores.tolist(), strict=True):
            scaled.setdefault(row.class_name, []).append(replace(row, score=score))
    return scaled


def _scaled(values: Iterable[float]) -> np.ndarray:
    found = np.fromiter(values, dtype=np.float64)
    return (found - found.min()) / (found.max() - found.min() + TINY)


def _class_result(
    state: ClassState, rows: Sequence[ScoreRow], draws: Draws, of_types: dict[str, Draws], protocol: Protocol
) -> ClassResult:
    """All metrics of one class, with the draws for its intervals and for those of its types of defect."""
    histogram = state.merged_histogram()
    found = _measure(rows, histogram, protocol)
    defects = {name: _defect_result(state, rows, name, draws, protocol) for name, draws in of_types.items()}
    singly = [defects[kind] for (_, kind), own in sorted(state.singly.items()) if own.num_regions]
    num_anomalous = sum(row.label for row in rows)
    return ClassResult(
        metrics=found.metrics,
        areas=found.areas | _means_of_types(singly) | _of_samples(rows),
        intervals=intervals(found.metrics, draws),
        defects=defects,
        undefined=found.undefined,
        num_images=len(rows),
        num_normal=len(rows) - num_anomalous,
        num_anomalous=num_anomalous,
        num_regions=histogram.num_regions,
        num_empty_masks=state.num_empty_masks,
        histogram_bits=histogram.bits,
        pixel_auroc_bound=found.bounds["pixel_auroc"],
        aupro_bound=found.bounds["aupro"],
    )


def _defect_result(
    state: ClassState, rows: Sequence[ScoreRow], defect_type: str, draws: Draws, protocol: Protocol
) -> DefectResult:
    rows = [row for row in rows if row.label == 0 or row.defect_type == defect_type]
    found = _measure(rows, state.merged_histogram(defect_type), protocol)
    areas = found.areas | _spro_areas(state, defect_type, protocol)
    return DefectResult(found.metrics, areas, intervals(found.metrics, draws), sum(row.label for row in rows))


def _mean_result(classes: Sequence[ClassResult], draws: Sequence[Draws]) -> MeanResult:
    """The unweighted mean of every metric over the classes that define it."""
    table = np.array([astuple(result.metrics) for result in classes], dtype=np.float64)  # (classes, metrics)
    means, undefined = {}, {}
    for name, column in zip(METRIC_NAMES, table.T, strict=True):
        defined = column[~np.isnan(column)]
        means[name] = math.fsum(defined) / defined.size if defined.size else NAN
        if defined.size < column.size:
            undefined[name] = column.size - defined.size
    areas = _mean_areas([result.areas for result in classes])
    num_images, metrics = sum(result.num_images for result in classes), Metrics(**means)
    return MeanResult(metrics, areas, intervals(metrics, mean_draws(draws)), undefined, len(classes), num_images)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The metrics of some images, and why others are undefined; `bounds` say how far pixel AUROC and AUPRO can be from
    their exact values."""

    metrics: Metrics
    areas: dict[str, float]
    undefined: dict[str, str]
    bounds: dict[str, float]


def _measure(rows: Sequence[ScoreRow], histogram: PixelHistogram, protocol: Protocol) -> _Measured:
    """Image metrics of the rows and pixel metrics of the histogram."""
    scores = np.array([row.score for row in rows], dtype=np.float64)
    images, pixels = rank_scores(scores, np.array([row.label for row in rows], dtype=np.int64)), rank_pixels(histogram)
    values, undefined = dict[str, float](), dict[str, str]()
    for names, ranked, items in ((IMAGE_METRICS, images, "images"), (PIXEL_METRICS, pixels, "pixels")):
        if ranked.num_normal and ranked.num_anomalous:
            found = (roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0])
            values |= zip(names, found, strict=False)
        else:
            missing = "normal" if ranked.num_anomalous else "anomalous"
            undefined |= dict.fromkeys(names, f"no {missing} {items}")
    if "pixel_auroc" not in values:
        return _Measured(Metrics(**values), {}, undefined, {"pixel_auroc": NAN, "aupro": NAN})
    limit, pro = protocol.fpr_limit, pro_curve(histogram)
    values |= {"aupro": pro.area(limit)} | strip_metrics(histogram, protocol)
    undefined |= {name: "too few thresholds of equal width" for name in PIXEL_METRICS if math.isnan(values[name])}
    exact = histogram.bits == KEY_BITS
    ties = {"pixel_auroc": roc_curve(pixels).largest_tie(), "aupro": pro.largest_tie(limit)}
    bounds = {name: NAN if name in protocol.estimated else 0.0 if exact else tie for name, tie in ties.items()}
    return _Measured(Metrics(**values), _areas("aupro", pro, protocol.more_fpr_limits), undefined, bounds)


def _spro_areas(state: ClassState, defect_type: str, protocol: Protocol) -> dict[str, float]:
    """AU-sPRO where it is defined; under a name of its own where it was measured on the map."""
    histogram = state.merged_histogram(defect_type, singly=True)
    if not histogram.num_regions or not rank_pixels(histogram).num_normal:
        return {}
    return _areas("au_spro" if state.native else "au_spro_map", pro_curve(histogram), protocol.spro_limits)


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
