"""What an evaluation says about classes, types of defect, datasets and everything together."""

import math
from dataclasses import asdict, dataclass, fields

from fmad_dist.config.protocol import Protocol

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

    def by_name(self) -> dict[str, float | None]:
        """As JSON has them: None where undefined."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


METRIC_NAMES = tuple(field.name for field in fields(Metrics))
IMAGE_METRICS, PIXEL_METRICS = METRIC_NAMES[:3], METRIC_NAMES[3:]


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
class Figures:
    """The numbers of a set of images, all shares in [0, 1]; `intervals` are 95 %, by bootstrap over images.

    `areas` has, where defined, the AUPRO at further limits of the false positive rate, as `aupro@0.05`. Where defects
    are annotated singly (MVTec LOCO AD) it has `au_spro@0.05` and `image_auroc_of_types` too, each the mean over types
    of defect, as in the official evaluation; `au_spro_map@0.05` instead where only resized masks are stored, measured
    on the map. Where parts have several views (Real-IAD) it has `sample_auroc`.
    """

    metrics: Metrics
    areas: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    def value(self, name: str) -> float:
        """A metric or area by its name; NaN where it is undefined."""
        return getattr(self.metrics, name) if name in METRIC_NAMES else self.areas.get(name, NAN)


@dataclass(frozen=True, slots=True)
class DefectResult(Figures):
    """The images with one type of defect, with all normal images of the class."""

    num_anomalous: int


@dataclass(frozen=True, slots=True)
class ClassResult(Figures):
    """One class. `undefined` gives the reason of every NaN; `num_empty_masks` counts defects without a mask pixel.

    `histogram_bits` of 32 says the pixel metrics are exact; below, `pixel_auroc_bound` and `aupro_bound` limit how far
    those two can be from their exact values.
    """

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
class MeanResult(Figures):
    """The unweighted mean over classes; `undefined` counts the classes that are left out of each metric's mean."""

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
