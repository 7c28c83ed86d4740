"""Find normal images of known classes, to fit thresholds to: in converted datasets and in folders of pictures."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fmad_dist.base.console import say, warn
from fmad_dist.base.errors import UserError
from fmad_dist.detector.files import DetectorSpec
from fmad_dist.detector.fit import GivenNormals
from fmad_dist.prediction.inputs import Item, Loaded, dataset_images, find_images, load, read_ahead
from fmad_dist.storage import Store
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.manifest import MANIFEST_NAME
from fmad_dist.stream.mixture import Mixture, split_normals
from fmad_dist.stream.reader import BadSample

READERS = 4  # threads
SHOWN_CLASSES = 5  # of a list in a sentence


def find_normals(
    spec: DetectorSpec,
    data: Sequence[str] = (),
    splits: Sequence[str] = ("train", "val"),
    holdout: float | None = None,
    sources: Sequence[str] = (),
    class_name: str | None = None,
) -> GivenNormals:
    """The normal images of converted datasets, at the URLs `data`, and all pictures in folders or tars at `sources`.

    Of a dataset, what is anomalous and what trained the detector, whose scores are too low for a threshold, is left
    out and counted; `holdout` is data.holdout of that training. Pictures are of the class that their folder is
    called after, or all of `class_name`.

    Raises:
        UserError: an image is of a class that the detector does not have, a source cannot be read, or it is not known
            which images trained.
    """
    found, origin = list[tuple[Item, int]](), dict[str, str]()
    for url in data:
        mixture = Mixture.load([url])
        origin |= mixture.digests
        found += _of_dataset(url, mixture, spec, splits, holdout)
    for url in sources:
        pictures = _of_folder(url, class_name, spec)
        listing = "".join(f"{item.name}\0{item.num_bytes}\n" for item, _ in pictures)
        origin[url] = hashlib.sha256(listing.encode()).hexdigest()
        found += pictures
    source = ItemSource([item for item, _ in found], spec.features.image_size)
    return GivenNormals(source, np.array([number for _, number in found], dtype=np.int64), origin)


class ItemSource(SampleSource):
    """The images of a list as a detector takes them, uint8 [3, S, S], read by a few threads."""

    def __init__(self, items: Sequence[Item], image_size: int) -> None:
        self.items, self.image_size = items, image_size

    def fetch(self, rows: Sequence[int]) -> list[Loaded]:
        return list(read_ahead(rows, lambda row: load(self.items[row], self.image_size), READERS, len(rows)))

    def decode(self, fetched: list[Loaded]) -> list[Tensor | BadSample]:
        return list(map(_as_tensor, fetched))


def _as_tensor(loaded: Loaded) -> Tensor | BadSample:
    if loaded.pixels is not None:
        return torch.tensor(loaded.pixels).permute(2, 0, 1)
    reason = f"cannot be used ({loaded.error.rstrip('.')})"
    return BadSample(loaded.item.name, loaded.item.url, reason, "replace or remove it")


def _of_dataset(
    url: str, mixture: Mixture, spec: DetectorSpec, splits: Sequence[str], holdout: float | None
) -> list[tuple[Item, int]]:
    """The normal images of the splits that did not train the detector."""
    (dataset,) = mixture.datasets
    rows = np.sort(np.concatenate([mixture.rows(split) for split in splits]))
    normal = rows[mixture.labels[rows] == 0]
    trained_on = spec.manifest_digests.get(dataset.name, "")
    if trained_on not in ("", dataset.manifest.digest):
        warn(f"{url}: another version of {dataset.name} trained the model; images that are in both score too low")
    unseen = normal
    if trained_on == dataset.manifest.digest and "train" in splits:
        if holdout is None:
            raise UserError(
                f"--data {url}: trained the model; give --run, which says what was held out, or --split val."
            )
        unseen = np.setdiff1d(normal, split_normals(mixture, holdout).train)
    say(
        f"{url}: {len(unseen)} normal images; left out are {len(rows) - len(normal)} anomalous ones and "
        f"{len(normal) - len(unseen)} that trained the model"
    )
    numbers = {name: class_number(name, spec, f"--data {url}") for name in np.unique(dataset.class_names[unseen])}
    items = {item.name: item for item in dataset_images(url, spec.features.image_size)}
    return [(items[dataset.sample_id(row)], numbers[dataset.class_names[row]]) for row in unseen.tolist()]


def _of_folder(url: str, class_name: str | None, spec: DetectorSpec) -> list[tuple[Item, int]]:
    """All pictures: of `class_name`, or of the class that the folder of each is called after."""
    if Store(url).exists(MANIFEST_NAME):
        raise UserError(f"--source {url}: a converted dataset; give it as --data.")
    items = find_images([url], spec.features.image_size)
    names = [class_name or item.name.rpartition("/")[0] for item in items]
    examples = dict(zip(names, items, strict=True))
    numbers = {n: class_number(n, spec, "--class" if class_name else item.url) for n, item in examples.items()}
    return [(item, numbers[name]) for item, name in zip(items, names, strict=True)]


def class_number(name: str, spec: DetectorSpec, where: str) -> int:
    """The position of a class called `<dataset>/<class>`, or `<class>` if one dataset alone has it.

    Raises:
        UserError: the detector has no such class, or several; the sentence begins with `where`.
    """
    short = name.partition("/")[2] or name
    found = [n for n, known in enumerate(spec.class_names) if known == name]
    found = found or [n for n, known in enumerate(spec.class_names) if known.partition("/")[2] == short]
    if len(found) == 1:
        return found[0]
    known = ", ".join(spec.class_names[:SHOWN_CLASSES]) + (", ..." if len(spec.class_names) > SHOWN_CLASSES else "")
    what = "no class" if not found else "more than one class"
    raise UserError(
        f"{where}: the model has {what} {name!r}; its classes are {known} (pictures lie in CLASS/, or give --class)."
    )
