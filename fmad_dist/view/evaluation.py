"""The results of `fmad evaluate`: scores of images whose truth is known."""

import csv
import io
import json
from collections.abc import Sequence

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.evaluation.results import RESULTS_NAME, SCORES_NAME
from fmad_dist.prediction.reading import read_bytes
from fmad_dist.prediction.sources import Item, dataset_images, tar_members
from fmad_dist.storage import Store
from fmad_dist.view.results import Columns, Scale, ScoredImages

INDEX, MAP_SUFFIX = "maps.json", ".map.npy"  # what `fmad evaluate --maps` writes
QUANTILE = 0.95  # of the normal images' scores, where the threshold is at first


class Evaluation(ScoredImages):
    """Scores without a threshold; images and maps lie elsewhere, in converted datasets and in tars of maps."""

    def __init__(self, store: Store, sources: Sequence[str], maps: str | None) -> None:
        self.facts = {"protocol": str(json.loads(store.read(RESULTS_NAME)).get("protocol_title", ""))}
        rows = list(csv.DictReader(io.StringIO(store.read(SCORES_NAME).decode())))
        names = [row["sample_id"] for row in rows]
        images = {item.name: item for url in sources for item in dataset_images(url)}
        self._items = _found(names, images, ", ".join(sources), "the evaluation's --manifest")
        self._maps = _found([_key(name) for name in names], _maps_at(maps), maps, "the evaluation's --maps")
        scores = np.array([float(row["score"]) for row in rows])
        normal = scores[[row["label"] == "0" for row in rows]]
        start = float(np.quantile(normal if len(normal) else scores, QUANTILE))
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
                "score",
                float(scores.min()),
                float(scores.max()),
                start,
                f"{QUANTILE:.0%} of the normal images lie below it",
            ),
        )

    def picture(self, row: int) -> bytes:
        return _bytes_of(self._items[row])

    def heat(self, row: int) -> np.ndarray:
        """As multiples of twice the threshold that the page starts with; pixels are scored in the units of images."""
        values = np.load(io.BytesIO(_bytes_of(self._maps[row])), allow_pickle=False)
        return values.astype(np.float32) / np.float32(2.0 * self.columns.scale.start)


def _bytes_of(item: Item | None) -> bytes:
    assert item is not None  # the page asks for those that are there
    return read_bytes(item)


def _found(names: Sequence[str], items: dict[str, Item], url: str | None, what: str) -> list[Item | None]:
    found = [items.get(name) for name in names]
    if url and not any(found):
        raise UserError(f"{url}: holds nothing about the images of this evaluation; give {what}.")
    return found


def _key(sample_id: str) -> str:
    return sample_id.replace(".", "_")


def _maps_at(url: str | None) -> dict[str, Item]:
    """The maps in the tars below `url` by key."""
    if url is None:
        return {}
    store = Store(url)
    if not store.exists(INDEX):
        raise UserError(f"{store.url_of(INDEX)}: not found; give the folder of a finished `fmad evaluate --maps`.")
    found = {}
    for shard in json.loads(store.read(INDEX))["shards"]:
        for member in tar_members(store, shard["name"]):
            if member.name.endswith(MAP_SUFFIX):
                found[member.name.removesuffix(MAP_SUFFIX)] = member
    return found
