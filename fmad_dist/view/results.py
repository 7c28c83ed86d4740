"""What the page needs of a folder of results, whichever command wrote it: columns, pictures and heat maps.

A prediction is of images that nobody has labelled, an evaluation of images whose truth is known. Pictures are addressed
by their row, so no request can name a file.
"""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.images.codec import open_image
from fmad_dist.prediction.inputs import Item, dataset_images, is_below, read_bytes, source_urls, tar_members
from fmad_dist.prediction.results import (
    ANOMALOUS,
    AS_CALIBRATED,
    MAPS,
    TABLE_NAME,
    UNREADABLE,
    picture_name,
    read_parquet,
)
from fmad_dist.report.result_files import RESULTS_NAME, SCORES_NAME
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp

QUANTILE = 0.95  # of the normal images' scores: where the slider of the threshold starts


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale that images are sorted and decided on: above the threshold that the user sets they are anomalous."""

    name: str
    low: float
    high: float
    start: float  # of the threshold
    meaning: str  # of that start


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
    """A folder of results; `facts` are shown above its images."""

    columns: Columns
    facts: dict[str, str]

    @abstractmethod
    def picture(self, row: int) -> bytes:
        """Read the image's file. Raises UserError when it is gone."""

    @abstractmethod
    def heat(self, row: int) -> np.ndarray:
        """Read the anomaly map on the normalised scale, float32 [M, M]. Raises UserError when it is gone."""


def page_data(results: ScoredImages) -> dict[str, Any]:
    """Return what the page gets once, compact for many thousands of images; values that are not finite are null."""
    columns = results.columns
    classes, class_of = np.unique(columns.classes, return_inverse=True)
    truths, truth_of = np.unique(columns.truths, return_inverse=True)
    return {
        "facts": results.facts,
        "scale": {name: getattr(columns.scale, name) for name in Scale.__slots__},
        "names": list(columns.names),
        "values": _finite(columns.values, 9),
        "scores": _finite(columns.scores, 5),
        "classNames": classes.tolist(),
        "classes": class_of.tolist(),
        "truthNames": truths.tolist(),
        "truths": truth_of.tolist(),
        "errors": {row: error for row, error in enumerate(columns.errors) if error},
        "pictures": [int(one) for one in columns.pictures],
        "heats": [int(one) for one in columns.heats],
    }


def _finite(values: np.ndarray, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


class Prediction(ScoredImages):
    """A prediction has decisions, and heat maps of all or of its anomalous images."""

    def __init__(self, store: Store) -> None:
        self.store = store
        table = read_parquet(store.read(TABLE_NAME)).to_pydict()
        self._byte_ranges = list(zip(table["url"], table["start"], table["num_bytes"], strict=True))
        self.columns = self._columns(table)

    def _columns(self, table: dict[str, list[Any]]) -> Columns:
        stamp = read_stamp(self.store)
        facts = stamp.facts if stamp is not None else {}
        self._sources = source_urls(facts)
        self.facts = {name: facts[name] for name in ("model", "sources", "sensitivity") if name in facts}
        drawn = facts.get("pictures", "none")
        readable = [decision != UNREADABLE for decision in table["decision"]]
        heats = [decision == ANOMALOUS if drawn == "anomalous" else drawn == "all" for decision in table["decision"]]
        scores = np.array(table["score"], dtype=np.float64)
        normalised = np.array(table["normalised"], dtype=np.float64)
        values, scale = _scaled(scores, normalised, float(facts.get("sensitivity", AS_CALIBRATED)))
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
        url, start, num_bytes = self._byte_ranges[row]
        if not is_below(url, self._sources):
            raise UserError(f"{url}: not below the sources of this prediction, so it is not read.")
        folder, _, file = url.rpartition("/")
        return read_bytes(Item(self.columns.names[row], folder, file, start, num_bytes))

    def heat(self, row: int) -> np.ndarray:
        name = picture_name(MAPS, self.columns.names[row])
        grey = open_image(self.store.read(name), self.store.url_of(name))
        return np.asarray(grey, dtype=np.float32) / 65536.0


def _scaled(scores: np.ndarray, normalised: np.ndarray, sensitivity: float) -> tuple[np.ndarray, Scale]:
    """Return normalised scores, which decide above 1 - sensitivity; the scores themselves if uncalibrated."""
    known = scores[np.isfinite(scores)]
    if np.isnan(normalised[np.isfinite(scores)]).any():
        low, high = float(known.min()), float(known.max())
        return scores, Scale("score", low, high, high, "the detector is not calibrated")
    return normalised, Scale("normalised score", 0.0, 1.0, 1.0 - sensitivity, "the detector's own threshold")


class Evaluation(ScoredImages):
    """An evaluation has no threshold; its images stay in converted datasets, and its maps in tars."""

    def __init__(self, store: Store, sources: Sequence[str], maps: str | None) -> None:
        self.facts = {"protocol": str(json.loads(store.read(RESULTS_NAME)).get("protocol_title", ""))}
        rows = list(csv.DictReader(io.StringIO(store.read(SCORES_NAME).decode())))
        names = [row["sample_id"] for row in rows]
        images = {item.name: item for url in sources for item in dataset_images(url)}
        self._items = _found(names, images, ", ".join(sources), "the evaluation's --data")
        self._maps = _found(names, _maps_at(maps, names), maps, "the evaluation's --maps")
        scores = np.array([float(row["score"]) for row in rows])
        normal = scores[[row["label"] == "0" for row in rows]]
        normal = normal if len(normal) else scores
        start = float(np.quantile(normal, QUANTILE))
        self._margin = (start - float(normal.mean())) or 1.0
        self.columns = Columns(
            names=names,
            values=scores,
            scores=scores,
            classes=[row["class"] for row in rows],
            truths=["good" if row["label"] == "0" else row["defect_type"] or "defect" for row in rows],
            errors=[""] * len(rows),
            pictures=[item is not None for item in self._items],
            heats=[item is not None for item in self._maps],
            scale=Scale(
                name="score",
                low=float(scores.min()),
                high=float(scores.max()),
                start=start,
                meaning=f"{QUANTILE:.0%} of the normal images lie below it",
            ),
        )

    def picture(self, row: int) -> bytes:
        return _bytes_of(self._items[row])

    def heat(self, row: int) -> np.ndarray:
        """Return the map as a detector would normalise it, with the threshold that the page starts with and the mean
        score of the normal images."""
        import torch

        from fmad_dist.scoring.calibration import normalise

        values = np.load(io.BytesIO(_bytes_of(self._maps[row])), allow_pickle=False).astype(np.float32)
        limits = torch.tensor(self.columns.scale.start), torch.tensor(self._margin)
        return normalise(torch.from_numpy(values), *limits).numpy()


def _bytes_of(item: Item | None) -> bytes:
    assert item is not None  # the page asks for those that are there
    return read_bytes(item)


def _found(names: Sequence[str], items: dict[str, Item], url: str | None, what: str) -> list[Item | None]:
    found = [items.get(name) for name in names]
    if url and not any(found):
        raise UserError(f"{url}: holds nothing about the images of this evaluation; give {what}.")
    return found


def _maps_at(url: str | None, names: Sequence[str]) -> dict[str, Item]:
    """Find the maps in the tars at `url`, by the name of their image."""
    if url is None:
        return {}
    from fmad_dist.evaluation.map_files import INDEX, MAP, key_of_sample

    store = Store(url)
    if not store.exists(INDEX):
        raise UserError(f"{store.url_of(INDEX)}: not found; give the folder of a finished `fmad evaluate --maps`.")
    members = {f"{key_of_sample(name)}.{MAP}": name for name in names}
    shards = json.loads(store.read(INDEX))["shards"]
    found = (member for shard in shards for member in tar_members(store, shard["name"]))
    return {members[member.name]: member for member in found if member.name in members}


def open_results(url: str, sources: Sequence[str] = (), maps: str | None = None) -> ScoredImages:
    """Open the results in a folder at any URL; `sources` are the datasets of an evaluation, for its images, `maps` is
    the folder of its maps.

    Raises:
        UserError: there are none, or they are damaged.
    """
    store = Store(url)
    name = next((one for one in (TABLE_NAME, RESULTS_NAME) if store.exists(one)), None)
    if name is None:
        raise UserError(
            f"{store.url}: holds no finished results ({TABLE_NAME} or {RESULTS_NAME}); give the --out of "
            "`fmad predict` or of `fmad evaluate`."
        )
    try:
        return Prediction(store) if name == TABLE_NAME else Evaluation(store, sources, maps)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{store.url_of(name)}: not results of this version ({first_line(error)}).") from None
