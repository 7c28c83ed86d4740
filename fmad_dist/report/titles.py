"""How metrics and numbers are written on the page, in the tables and in the terminal."""

import math

from fmad_dist.metrics.results import METRIC_NAMES

DASH = "–"  # an undefined or unknown value
SHORT_TITLES = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "aupro": "AUPRO",
}
AREAS = {
    "aupro": "AUPRO",
    "au_spro": "AU-sPRO",
    "au_spro_map": "AU-sPRO on the map",
    "image_auroc_of_types": "image AUROC of types",
    "sample_auroc": "sample AUROC",
}


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
    """An interval of shares in percent: `91.2 to 95.0`."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def short_title(metric: str) -> str:
    """As a column title: I-AUROC, P-AP, AUPRO."""
    return SHORT_TITLES.get(metric, metric.replace("_", " "))


def bare_title(metric: str) -> str:
    """Below a heading that names the level: AUROC, F1max, AUPRO."""
    return short_title(metric).rpartition("-")[2]


def long_title(name: str) -> str:
    """As running text, of a metric or area: image AUROC, pixel AP, AUPRO, AU-sPRO 0.05."""
    if name not in METRIC_NAMES:
        kind, _, limit = name.partition("@")
        return f"{AREAS.get(kind, kind.replace('_', ' '))} {limit}".strip()
    level, _, rest = name.partition("_")
    return f"{level} {bare_title(name)}" if rest else bare_title(name)
