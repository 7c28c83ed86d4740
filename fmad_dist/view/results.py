"""What a folder of results says about its images: the columns that the page shows, pictures and heat maps.

Pictures are addressed by their row, so no request can name a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that images are sorted and decided by: anomalous is what lies above the threshold that is set."""

    name: str
    low: float
    high: float
    start: float  # where the threshold is at first
    says: str  # what that is


@dataclass(frozen=True)
class Columns:
    """One entry per image; `values` NaN where it could not be read."""

    names: Sequence[str]
    values: np.ndarray  # float64 [N], on `scale`
    scores: np.ndarray  # float64 [N], as the detector gave them
    classes: Sequence[str]
    truths: Sequence[str]  # type of defect or "good", where it is known; else empty
    errors: Sequence[str]  # "" where there is none
    pictures: Sequence[bool]
    heats: Sequence[bool]
    scale: Scale


class ScoredImages(ABC):
    """A folder of results. `facts` say what it is."""

    columns: Columns
    facts: dict[str, str]

    @abstractmethod
    def picture(self, row: int) -> bytes:
        """The image's file. Raises UserError when it is gone."""

    @abstractmethod
    def heat(self, row: int) -> np.ndarray:
        """The anomaly map on the normalised scale, float32 [M, M]. Raises UserError when it is gone."""


def page_data(results: ScoredImages) -> dict[str, Any]:
    """What the page gets once: compact, for many thousands of images. Values that are not finite are null."""
    columns = results.columns
    classes, truths = sorted(set(columns.classes)), sorted(set(columns.truths))
    return {
        "facts": results.facts,
        "scale": {name: getattr(columns.scale, name) for name in Scale.__slots__},
        "names": list(columns.names),
        "values": _finite(columns.values, 9),
        "scores": _finite(columns.scores, 5),
        "classNames": classes,
        "classes": _positions(columns.classes, classes),
        "truthNames": truths,
        "truths": _positions(columns.truths, truths),
        "errors": {row: error for row, error in enumerate(columns.errors) if error},
        "pictures": [int(one) for one in columns.pictures],
        "heats": [int(one) for one in columns.heats],
    }


def _finite(values: np.ndarray, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def _positions(values: Sequence[str], names: Sequence[str]) -> list[int]:
    where = {name: position for position, name in enumerate(names)}
    return [where[value] for value in values]
