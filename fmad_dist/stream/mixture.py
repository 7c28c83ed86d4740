"""Several converted datasets as one pool of images with one list of classes."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.stream.dataset import Dataset, load_dataset
from fmad_dist.stream.plan import by_class


@dataclass(frozen=True)
class Mixture:
    """Datasets sorted by name. A `row` counts through the images of all datasets in that order."""

    datasets: tuple[Dataset, ...]
    starts: np.ndarray  # int64 [D + 1], the row of each dataset's first image

    @classmethod
    def load(cls, urls: Sequence[str]) -> "Mixture":
        """Read all manifests. The order of `urls` does not matter.

        Raises:
            UserError: no URL is given, or two of them hold a dataset of the same name.
        """
        if not urls:
            raise UserError("data.manifests: empty; name at least one converted dataset (see `fmad data convert`).")
        datasets = sorted((load_dataset(url) for url in urls), key=lambda dataset: dataset.name)
        for one, other in itertools.pairwise(datasets):
            if one.name == other.name:
                raise UserError(f"data.manifests: {one.url} and {other.url} both hold the dataset {one.name!r}.")
        return cls(tuple(datasets), np.cumsum([0, *(len(dataset) for dataset in datasets)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture, (self.datasets, self.starts)  # nothing that was worked out of every row

    @property
    def digest(self) -> str:
        """SHA-256 over the manifests' digests: names the content of the whole mixture."""
        return hashlib.sha256("".join(dataset.manifest.digest for dataset in self.datasets).encode()).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every dataset's manifest by name."""
        return {dataset.name: dataset.manifest.digest for dataset in self.datasets}

    @cached_property
    def class_names(self) -> list[str]:
        """All `<dataset>/<class>` names that have training images, sorted."""
        trained = []
        for dataset in self.datasets:
            numbers, names = dataset.classes
            trained += [names[number] for number in np.unique(numbers[dataset.indices("train")])]
        return sorted(trained)

    def rows(self, split: str) -> np.ndarray:
        """The images of a split, ascending, int64 [n]."""
        parts = [start + dataset.indices(split) for start, dataset in zip(self.starts, self.datasets, strict=False)]
        return np.concatenate(parts)

    def locate(self, row: int) -> tuple[Dataset, int]:
        """The dataset of a row, and the index inside it."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.datasets[number], int(row - self.starts[number])

    def sample_ids(self, rows: np.ndarray) -> list[str]:
        """The ids of rows that are all of one dataset or in ascending order."""
        found: list[str] = []
        for dataset, start, stop in zip(self.datasets, self.starts[:-1], self.starts[1:], strict=True):
            found += dataset.ids_of(rows[(rows >= start) & (rows < stop)] - start)
        return found

    @cached_property
    def labels(self) -> np.ndarray:
        """0 normal, 1 anomalous, of every row."""
        return np.concatenate([dataset.labels for dataset in self.datasets])

    def sample_id(self, row: int) -> str:
        dataset, index = self.locate(row)
        return dataset.sample_id(index)

    @cached_property
    def class_numbers(self) -> np.ndarray:
        """Which of `class_names` every row is of, int64 [N]; -1 for a class without training images."""
        number_of = {name: number for number, name in enumerate(self.class_names)}
        parts = []
        for dataset in self.datasets:
            numbers, names = dataset.classes
            parts.append(np.array([number_of.get(name, -1) for name in names], dtype=np.int64)[numbers])
        return np.concatenate(parts)


@dataclass(frozen=True)
class TrainSplit:
    """The training normals of a mixture, divided into those that train and those that calibrate."""

    train: np.ndarray  # rows int64 [n], ascending
    held_out: np.ndarray  # rows int64 [m], ascending


def split_normals(mixture: Mixture, holdout: float) -> TrainSplit:
    """Choose the normals that calibrate.

    They are those of the split `val` where a class has them, and otherwise round(holdout * n) of its n training normals
    (at least 1), those with the smallest SHA-256 of their sample id. The choice depends on the ids alone, so it is the
    same for every seed, world size and order of manifests.

    Raises:
        UserError: a class has fewer than two training images and no validation images.
    """
    rows, validation = mixture.rows("train"), mixture.rows("val")
    validation = validation[mixture.labels[validation] == 0]
    classes, validation_classes = mixture.class_numbers[rows], mixture.class_numbers[validation]
    held_out: list[np.ndarray] = [validation[validation_classes >= 0]]
    validated = set(validation_classes.tolist())
    members_of = by_class(rows, classes, len(mixture.class_names))
    for number, (name, members) in enumerate(zip(mixture.class_names, members_of, strict=True)):
        if number in validated:
            continue
        if len(members) < 2:
            raise UserError(f"class {name}: {len(members)} training image; at least 2 are needed (1 is held out).")
        ranks = [hashlib.sha256(sample_id.encode()).digest() for sample_id in mixture.sample_ids(members)]
        order = sorted(range(len(members)), key=ranks.__getitem__)
        count = min(max(1, round(holdout * len(members))), len(members) - 1)
        held_out.append(members[np.sort(order[:count])])
    chosen = np.sort(np.concatenate(held_out))
    trains = np.ones(mixture.starts[-1], dtype=bool)
    trains[chosen] = False
    return TrainSplit(train=rows[trains[rows]], held_out=chosen)
