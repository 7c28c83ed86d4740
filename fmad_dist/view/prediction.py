"""The results of `fmad predict`."""

from typing import Any

import numpy as np

from fmad_dist.images import open_image
from fmad_dist.prediction.pictures import MAPS
from fmad_dist.prediction.reading import read_bytes
from fmad_dist.prediction.sources import Item
from fmad_dist.prediction.table import ANOMALOUS, AS_CALIBRATED, TABLE_NAME, UNREADABLE, read_parquet
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp
from fmad_dist.view.results import Columns, Scale, ScoredImages


class Prediction(ScoredImages):
    """Scores with decisions, and heat maps of all or some images."""

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
        url, start, num_bytes = self._places[row]
        folder, _, file = url.rpartition("/")
        return read_bytes(Item(self.columns.names[row], folder, file, start, num_bytes))

    def heat(self, row: int) -> np.ndarray:
        name = f"{MAPS}/{self.columns.names[row]}.png"
        grey = open_image(self.store.read(name), self.store.url_of(name))
        return np.asarray(grey, dtype=np.float32) / 65536.0


def _scaled(scores: np.ndarray, normalised: np.ndarray, sensitivity: float) -> tuple[np.ndarray, Scale]:
    """Normalised scores, which decide above 1 - sensitivity; the scores themselves while uncalibrated."""
    known = scores[np.isfinite(scores)]
    if np.isnan(normalised[np.isfinite(scores)]).any():
        low, high = float(known.min()), float(known.max())
        return scores, Scale("score", low, high, high, "the detector is not calibrated")
    return normalised, Scale("normalised score", 0.0, 1.0, 1.0 - sensitivity, "the detector's own threshold")
