"""The training stream of a configuration: the one way to build it, for training, for its checks and for dry runs.

How often the images of each class appear in an epoch follows from balance, shares of datasets and weights of classes in
three steps, all exact in whole samples:
1. A class of n images has the natural quota round(n_max * (n / n_max) ** (1 / temperature)); at temperature 1 it is n.
2. A class weight multiplies its quota.
3. Dataset shares divide the epoch, whose size stays the sum of the quotas, among the datasets; inside a dataset the
   quotas give the proportions. Both divisions are by largest remainders, so counts add up and differ from the ideal by
   less than one sample.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import DataConfig
from fmad_dist.stream.mixture import Mixture, TrainSplit, split_normals
from fmad_dist.stream.plan import StreamPlan

MAX_EPOCH = 10**9  # appearances; the order of an epoch is held in memory


@dataclass(frozen=True)
class TrainingStream:
    """All images, which of them train, and when each is read."""

    mixture: Mixture
    split: TrainSplit
    plan: StreamPlan

    @property
    def class_counts(self) -> np.ndarray:
        """Training images of each class of the mixture, int64 [K]."""
        return np.bincount(self.plan.classes, minlength=len(self.mixture.class_names))


def open_stream(data: DataConfig, seed: int) -> TrainingStream:
    """Read the manifests and plan the stream.

    Raises:
        UserError: a manifest cannot be read, a class has too few images, or a weight names nothing.
    """
    mixture = Mixture.load(data.manifests)
    split = split_normals(mixture, data.holdout)
    classes = mixture.class_numbers[split.train]
    counts = np.bincount(classes, minlength=len(mixture.class_names))
    quotas = class_quotas(counts, mixture.class_names, data.temperature, data.weights, data.class_weights)
    return TrainingStream(mixture, split, StreamPlan(split.train, classes, mixture.digest, seed, quotas))


def class_quotas(
    counts: np.ndarray,
    class_names: Sequence[str],
    temperature: float = 1.0,
    shares: Mapping[str, float] | None = None,
    class_weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Appearances per epoch of each class, int64 [K].

    `counts` int64 [K] are the training images of the classes, at least one each; `class_names` are
    `<dataset>/<class>`. Source: ours.

    Raises:
        UserError: a name in `shares` or `class_weights` is unknown, a dataset has no share, a class would never appear,
            or an epoch would have more than `MAX_EPOCH` appearances.
    """
    natural = np.round(counts.max() * (counts / counts.max()) ** (1.0 / temperature))
    factors = class_weights or {}
    _check_known("data.class_weights", factors, class_names)
    weighted = natural * np.array([factors.get(name, 1.0) for name in class_names])
    if not weighted.sum() <= MAX_EPOCH:
        raise UserError(
            f"data.class_weights, data.temperature: an epoch would have {weighted.sum():.3g} samples, more than "
            f"{MAX_EPOCH:.0e}; lower them."
        )
    quotas = np.round(weighted).astype(np.int64)
    if shares:
        quotas = _divided(weighted, quotas.sum(), class_names, shares)
    if (quotas == 0).any():
        name = class_names[int(np.argmin(quotas))]
        raise UserError(
            f"data.weights, data.class_weights: class {name} would never appear; raise its weight or its dataset's."
        )
    return quotas


def largest_remainders(total: int, ideal: np.ndarray) -> np.ndarray:
    """Whole numbers int64 [n] that add up to `total` in the proportions of `ideal` [n], each within 1 of its ideal."""
    exact = total * ideal / ideal.sum()
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    order = np.argsort(whole - exact, kind="stable")  # largest remainder first, ties by position
    whole[order[:missing]] += 1
    return whole


def _divided(
    weighted: np.ndarray, epoch_size: int, class_names: Sequence[str], shares: Mapping[str, float]
) -> np.ndarray:
    dataset_of = np.array([name.partition("/")[0] for name in class_names])
    datasets = sorted(set(dataset_of.tolist()))
    _check_known("data.weights", shares, datasets)
    missing = [name for name in datasets if name not in shares]
    if missing:
        raise UserError(f"data.weights: no share for the dataset {missing[0]}; name all of {', '.join(datasets)}.")
    totals = largest_remainders(epoch_size, np.array([shares[name] for name in datasets]))
    quotas = np.zeros(len(class_names), dtype=np.int64)
    for name, total in zip(datasets, totals, strict=True):
        own = dataset_of == name
        quotas[own] = largest_remainders(int(total), weighted[own])
    return quotas


def _check_known(field: str, given: Mapping[str, float], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
            raise UserError(f"{field}: unknown name {name!r}; {hint}")
