"""The training stream of a configuration: the one way to build it, for training, for its checks and for dry runs."""

from dataclasses import dataclass

import numpy as np

from fmad_dist.config import DataConfig
from fmad_dist.stream.mixing import class_quotas
from fmad_dist.stream.mixture import Mixture, TrainSplit, split_normals
from fmad_dist.stream.plan import StreamPlan


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
