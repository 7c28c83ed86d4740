"""What a folder of results says about its images: the columns that the page shows, pictures and heat maps.

Pictures are addressed by their row, so no request can name a file.
"""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.results import RESULTS_NAME, SCORES_NAME
from fmad_dist.images import open_image
from fmad_dist.prediction.pictures import MAPS, THRESHOLD
from fmad_dist.prediction.sources import Item, dataset_images
from fmad_dist.prediction.table import ANOMALOUS, TABLE_NAME, UNREADABLE, read_parquet
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp


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
        """The anomaly map, float32 [M, M], 1 = threshold. Raises UserError when it is gone."""


def open_results(url: str, sources: Sequence[str] = ()) -> ScoredImages:
    """The results in a folder at any URL; `sources` are the datasets of an evaluation, for its images.

    Raises:
        UserError: there are none, or they are damaged.
    """
    store = Store(url)
    name = next((one for one in (TABLE_NAME, RESULTS_NAME) if store.exists(one)), None)
    try:
        if name is not None:
            return Prediction(store) if name == TABLE_NAME else Evaluation(store, sources)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{store.url_of(name)}: not results of this version ({first_line(error)}).") from None
    raise UserError(
        f"{store.url}: holds no finished results ({TABLE_NAME} or {RESULTS_NAME}); give the --out of `fmad predict` or "
        "of `fmad evaluate`."
    )


class Prediction(ScoredImages):
    """What `fmad predict` wrote."""

    def __init__(self, store: Store) -> None:
        self.store = store
        table = read_parquet(store.read(TABLE_NAME)).to_pydict()
        self._places = list(zip(table["url"], table["start"], table["num_bytes"], strict=True))
        self.columns = self._columns(table)

    def _columns(self, table: dict[str, list[Any]]) -> Columns:
        stamp = read_stamp(self.store)
        facts = stamp.facts if stamp is not None else {}
        self.facts = {name: facts[name] for name in ("model", "sources", "sensitivity") if name in facts}
        drawn = facts.get("pictures", "none")
        readable = [decision != UNREADABLE for decision in table["decision"]]
        heats = [decision == ANOMALOUS if drawn == "anomalous" else drawn == "all" for decision in table["decision"]]
        scores = np.array(table["score"], dtype=np.float64)
        values, scale = _relative(scores, np.array(table["threshold"], dtype=np.float64))
        return Columns(
            names=table["image"],
            values=values,
            scores=scores,
            classes=[name or "" for name in table["class"]],
            truths=(),
            errors=table["error"],
            pictures=readable,
            heats=[one and other for one, other in zip(heats, readable, strict=True)],
            scale=scale,
        )

    def picture(self, row: int) -> bytes:
        url, start, num_bytes = self._places[row]
        folder, _, file = url.rpartition("/")
        return _store(folder).read_range(file, start, start + num_bytes)

    def heat(self, row: int) -> np.ndarray:
        name = f"{MAPS}/{self.columns.names[row]}.png"
        grey = open_image(self.store.read(name), self.store.url_of(name))
        return np.asarray(grey, dtype=np.float32) / THRESHOLD


def _relative(scores: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, Scale]:
    """Scores of all classes on one scale from 0 to 1, 0.5 = threshold; as they are where there is no threshold."""
    known = scores[np.isfinite(scores)]
    if not np.isfinite(thresholds[np.isfinite(scores)]).all():
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        return scores, Scale("score", low, high, high, "the detector is not calibrated")
    return scores / (scores + thresholds), Scale("score", 0.0, 1.0, 0.5, "the detector's own threshold")


class Evaluation(ScoredImages):
    """What `fmad evaluate` wrote: scores of images whose truth is known, without a threshold."""

    QUANTILE = 0.95  # of the normal images' scores, where the threshold is at first

    def __init__(self, store: Store, sources: Sequence[str]) -> None:
        self.facts = {"protocol": str(json.loads(store.read(RESULTS_NAME)).get("protocol_title", ""))}
        rows = list(csv.DictReader(io.StringIO(store.read(SCORES_NAME).decode())))
        found = {item.name: item for url in sources for item in dataset_images(url)}
        self._items: list[Item | None] = [found.get(row["sample_id"]) for row in rows]
        if sources and not any(self._items):
            raise UserError(f"{', '.join(sources)}: holds none of the images of {store.url}; give its --manifest.")
        scores = np.array([float(row["score"]) for row in rows])
        normal = scores[[row["label"] == "0" for row in rows]]
        start = float(np.quantile(normal if len(normal) else scores, self.QUANTILE))
        says = f"{self.QUANTILE:.0%} of the normal images lie below it"
        self.columns = Columns(
            names=[row["sample_id"] for row in rows],
            values=scores,
            scores=scores,
            classes=[row["class"] for row in rows],
            truths=["good" if row["label"] == "0" else row["defect_type"] or "defect" for row in rows],
            errors=[""] * len(rows),
            pictures=[item is not None for item in self._items],
            heats=[False] * len(rows),
            scale=Scale("score", float(scores.min()), float(scores.max()), start, says),
        )

    def picture(self, row: int) -> bytes:
        item = self._items[row]
        assert item is not None  # the page asks for those that are there
        return _store(item.folder).read_range(item.file, item.start, item.start + item.num_bytes)

    def heat(self, row: int) -> np.ndarray:
        raise UserError("an evaluation keeps its maps elsewhere.")


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    return Store(folder)


def page_data(results: ScoredImages) -> dict[str, Any]:
    """What the page gets once: compact, for many thousands of images. Values that are not finite are null."""
    columns = results.columns
    classes, truths = sorted(set(columns.classes)), sorted(set(columns.truths))
    return {
        "facts": results.facts,
        "scale": {name: getattr(columns.scale, name) for name in Scale.__slots__},
        "names": list(columns.names),
        "values": _finite(columns.values),
        "scores": _finite(columns.scores),
        "classNames": classes,
        "classes": _positions(columns.classes, classes),
        "truthNames": truths,
        "truths": _positions(columns.truths, truths),
        "errors": {row: error for row, error in enumerate(columns.errors) if error},
        "pictures": [int(one) for one in columns.pictures],
        "heats": [int(one) for one in columns.heats],
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _positions(values: Sequence[str], names: Sequence[str]) -> list[int]:
    where = {name: position for position, name in enumerate(names)}
    return [where[value] for value in values]
