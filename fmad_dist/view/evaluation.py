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

QUANTILE = 0.95  # of the normal images' scores, where the threshold is at first


class Evaluation(ScoredImages):
    """Scores without a threshold; images and maps lie elsewhere, in converted datasets and in tars of maps."""

    def __init__(self, store: Store, sources: Sequence[str], maps: str | None) -> None:
        self.facts = {"protocol": str(json.loads(store.read(RESULTS_NAME)).get("protocol_title", ""))}
        rows = list(csv.DictReader(io.StringIO(store.read(SCORES_NAME).decode())))
        names = [row["sample_id"] for row in rows]
        images = {item.name: item for url in sources for item in dataset_images(url)}
        self._items = _found(names, images, ", ".join(sources), "the evaluation's --manifest")
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
        """Normalised as a detector does it, with the threshold that the page starts with and the mean normal image;
        pixels are scored in the units of images."""
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
    """The maps in the tars below `url` by the name of their image."""
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
