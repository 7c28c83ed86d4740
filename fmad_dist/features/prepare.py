"""Before training: find or compute the feature caches, and set the whitening from the training normals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import FeatureConfig, RunConfig
from fmad_dist.features.backbones import PIXELS, Backbone, FeatureSpec, chunk_for, load_backbone
from fmad_dist.features.cache import SHARD_RECORDS, CachedSource, CacheFolder, FeatureCache, extract
from fmad_dist.features.sums import FeatureSums, summed
from fmad_dist.features.whitening import Whitening
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import Mixture, TrainSplit
from fmad_dist.stream.reader import BadSample

MAX_WHITENING_IMAGES = 4096  # without a cache, the whitening is estimated on at most this many training normals


class TrainingImages(Protocol):
    """The images of a run, its split into training and held-out images, and the source that reads them."""

    mixture: Mixture
    split: TrainSplit
    images: SampleSource


@dataclass(frozen=True)
class PreparedFeatures:
    """The inputs of training, and what whitening and class means are computed from."""

    backbone: Backbone
    whitening: Whitening
    source: SampleSource  # uint8 images, or float16 features when `cached`
    cached: bool
    weights_digest: str
    sums: FeatureSums  # over the training normals of each class
    bad: tuple[BadSample, ...] = ()  # images that were left out because they are damaged

    def class_means(self) -> torch.Tensor:
        """Mean whitened feature vector of each class over its training normals, float32 [K, C]."""
        return self.sums.class_means(self.whitening, self.backbone.spec.grid**2)


def feature_spec(config: FeatureConfig) -> FeatureSpec:
    """What a configuration says about features; `pixels` has one stage whatever the taps are."""
    taps = (0,) if config.backbone == PIXELS else config.taps
    return FeatureSpec(config.backbone, taps, config.grid, config.image_size, config.reduction)


def prepare_features(config: RunConfig, data: TrainingImages, world: World, device: torch.device) -> PreparedFeatures:
    """Load the backbone, find or compute the caches of its features, and set the whitening; every rank calls.

    Damaged images are left out and listed.

    Raises:
        UserError: the backbone or a cache cannot be used, or a class has no readable image.
    """
    settings, mixture, rows = config.features, data.mixture, data.split.train
    backbone = load_backbone(feature_spec(settings), settings.weights).to(device)
    backbone.chunk = chunk_for(device)
    digest = backbone.weights_digest()
    source, bad = data.images, list[BadSample]()
    if settings.cache is None:
        rows = _spread(rows, mixture.class_numbers[rows])

        def moments(own: np.ndarray) -> Iterator[np.ndarray]:
            for part in extract(data.images, own, backbone):
                bad.extend(part.bad)
                yield part.moments
    else:
        caches = {}
        for dataset, start in zip(mixture.datasets, mixture.starts, strict=False):
            folder = CacheFolder.of(settings.cache, dataset, backbone, digest)
            own = start + dataset.indices("train")
            cache = folder.open() or _build(folder, data.images, own, backbone, world, config.data.max_bad_samples)
            cache.store.patience_s = config.data.patience_s
            caches[dataset.name] = cache
        source = cached = CachedSource(mixture, caches)

        def moments(own: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(own), SHARD_RECORDS):
                some = own[start : start + SHARD_RECORDS]
                found = cached.moments(some)
                bad.extend(cached.damaged(some[np.isnan(found).any(axis=(1, 2))]))
                yield found

    whitening, tokens = Whitening(backbone.num_channels, settings.norm), settings.grid**2
    classes = mixture.class_numbers[rows]
    sums = summed(rows, classes, len(mixture.class_names), moments, whitening, tokens, world)
    every_bad = [one for found in world.gather(bad) for one in found]
    if (sums.counts == 0).any():
        name = mixture.class_names[int(np.argmin(sums.counts))]
        raise UserError(f"class {name}: none of its images could be read, first: {every_bad[0]}")
    sums.set(whitening, tokens)
    is_cached = settings.cache is not None
    return PreparedFeatures(backbone, whitening.to(device), source, is_cached, digest, sums, tuple(every_bad))


def _spread(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """About `MAX_WHITENING_IMAGES` of the rows, evenly spaced, and at least one of every class."""
    first_of_class = np.unique(classes, return_index=True)[1]
    return np.union1d(rows[:: -(-len(rows) // MAX_WHITENING_IMAGES)], rows[first_of_class])


def _build(
    folder: CacheFolder, images: SampleSource, rows: np.ndarray, backbone: Backbone, world: World, max_bad_samples: int
) -> FeatureCache:
    """Compute the cache of a dataset, whose training images are `rows`, on all ranks; too many damaged are refused."""
    gathered = world.gather(folder.compute(images, rows, backbone, world))
    computed = [one for own in gathered for one in own]
    bad = [one for found in computed for one in found.bad]
    if len(bad) > max_bad_samples:
        raise UserError(f"data.max_bad_samples: {len(bad)} damaged samples, {max_bad_samples} allowed; {bad[0]}")
    if world.is_main:
        folder.seal([found.shard for found in computed])
    world.barrier()  # no rank opens the cache before the main one has sealed it
    cache = folder.open()
    assert cache is not None
    return cache
