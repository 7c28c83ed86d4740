"""How metrics and numbers are written on the page and in the tables."""

import math
from itertools import groupby

from fmad_dist.evaluation.results import METRIC_NAMES
from fmad_dist.evaluation.summary import COLUMNS

DASH = "–"  # an undefined or unknown value
AREAS = {
    "aupro": "AUPRO",
    "au_spro": "AU-sPRO",
    "au_spro_map": "AU-sPRO on the map",
    "image_auroc_of_types": "image AUROC of types",
    "sample_auroc": "sample AUROC",
}
_LEVELS = {"image": "Image", "sample": "Sample"}  # everything else is measured on pixels


def percent(value: float) -> str:
    """A share in [0, 1] as percent with one decimal, a dash for NaN."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}"


def setting_text(value: object) -> str:
    """A value of the protocol: `yes`, `none`, `0.1, 0.05, 0.01`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(setting_text, value)) or "none"
    return "none" if value is None else str(value)


def interval_text(interval: tuple[float, float]) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"


def short_title(metric: str) -> str:
    """As a column title: I-AUROC, P-AP, AUPRO."""
    return COLUMNS.get(metric, metric.replace("_", " "))


def long_title(metric: str) -> str:
    """As running text: image AUROC, pixel AP, AUPRO, AU-sPRO 0.05."""
    if metric not in METRIC_NAMES:
        return area_title(metric)
    level, _, rest = metric.partition("_")
    return f"{level} {bare_title(metric)}" if rest else bare_title(metric)


def bare_title(metric: str) -> str:
    """Below a heading that names the level: AUROC, F1max, AUPRO."""
    return short_title(metric).rpartition("-")[2]


def area_title(name: str) -> str:
    """Of a name in `areas`, as `aupro@0.05`."""
    kind, _, limit = name.partition("@")
    return f"{AREAS.get(kind, kind.replace('_', ' '))} {limit}".strip()


def metric_groups() -> list[tuple[str, tuple[str, ...]]]:
    """Neighbouring metrics of one level: [("Image", ("image_auroc", ...)), ("Pixel", (...))]."""
    grouped = groupby(METRIC_NAMES, key=lambda name: _LEVELS.get(name.partition("_")[0], "Pixel"))
    return [(level, tuple(names)) for level, names in grouped]
