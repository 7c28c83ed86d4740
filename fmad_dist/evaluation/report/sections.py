"""One class on the page: what to know about its numbers, its charts and its images."""

from dataclasses import dataclass

from fmad_dist.evaluation.report import charts
from fmad_dist.evaluation.report.summary import Table, anchor, types_table
from fmad_dist.evaluation.report.tiles import Gallery, gallery
from fmad_dist.evaluation.report.titles import interval_text, long_title
from fmad_dist.evaluation.results import METRIC_NAMES, ClassResult, Results
from fmad_dist.evaluation.state import EvaluationState

BOUND_WORTH_A_NOTE = 1e-4
BOOTSTRAP = "95 %, bootstrap over images"


@dataclass(frozen=True, slots=True)
class ClassSection:
    name: str
    anchor: str
    counts: str
    charts: tuple[charts.Chart, ...]
    gallery: Gallery
    notes: tuple[str, ...]
    types: Table | None  # by type of defect, when there are several


def class_section(name: str, results: Results, state: EvaluationState) -> ClassSection:
    """`state` is the merged state that `results` were computed from."""
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
        anchor=anchor(name),
        counts=f"{result.num_normal} normal and {result.num_anomalous} anomalous images, {result.num_regions} regions",
        charts=tuple(chart for chart in drawn if chart is not None),
        gallery=gallery(class_state.board.final({row.sample_id: row.score for row in rows})),
        notes=tuple(_notes(result)),
        types=types_table(result),
    )


def interval_notes(intervals: dict[str, tuple[float, float]]) -> list[str]:
    """A sentence with all intervals, or none."""
    known = [metric for metric in METRIC_NAMES if metric in intervals]
    text = "; ".join(f"{long_title(metric)} {interval_text(intervals[metric])}" for metric in known)
    return [f"{text[0].upper()}{text[1:]} ({BOOTSTRAP})."] if text else []


def _notes(result: ClassResult) -> list[str]:
    """What a reader of this class's numbers has to know."""
    notes = interval_notes(result.intervals)
    for reason in dict.fromkeys(result.undefined.values()):
        names = ", ".join(long_title(name) for name, why in result.undefined.items() if why == reason)
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
