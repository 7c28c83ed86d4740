"""Before training: find or compute the feature caches, and set the whitening from the training normals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmad_dist.config import FeatureConfig
from fmad_dist.features.backbones import Backbone, FeatureSpec, chunk_for, load_backbone
from fmad_dist.features.cache import CachedSource, FeatureCache, compute_shards, open_cache, seal_cache
from fmad_dist.features.whitening import Whitening, image_moments
from fmad_dist.stream.batches import ImageSource, SampleSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.world import World

MAX_WHITENING_IMAGES = 4096  # without a cache, the whitening is estimated on at most this many training normals

GatherObjects = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class PreparedFeatures:
    """What training needs to know about its inputs."""

    backbone: Backbone
    whitening: Whitening
    source: SampleSource  # uint8 images, or float16 features when `cached`
    cached: bool
    weights_digest: str
    rows: np.ndarray  # training rows behind the whitening, int64 [n]
    moments: np.ndarray  # their per-image channel sums, float64 [n, 2, C]

    def class_means(self, class_of_row: np.ndarray, num_classes: int) -> torch.Tensor:
        """Mean whitened feature vector of each class over its training normals, float32 [K, C]."""
        tokens = self.backbone.spec.grid**2
        pooled = torch.from_numpy(self.moments[:, 0] / tokens).float()
        means = [pooled[torch.from_numpy(class_of_row == number)].mean(dim=0) for number in range(num_classes)]
        return self.whitening.cpu_copy()(torch.stack(means)[..., None, None])[..., 0, 0]


def feature_spec(config: FeatureConfig) -> FeatureSpec:
    return FeatureSpec(config.backbone, config.taps, config.grid, config.image_size)


def prepare_features(
    config: FeatureConfig,
    mixture: Mixture,
    train_rows: np.ndarray,
    world: World,
    device: torch.device,
    gather: GatherObjects,
) -> PreparedFeatures:
    """Called by every rank; `gather` returns the objects of all ranks in rank order, on every rank."""
    backbone = load_backbone(feature_spec(config), config.weights).to(device)
    backbone.chunk = chunk_for(device)
    digest = backbone.weights_digest()
    images = ImageSource(mixture, config.image_size)
    whitening = Whitening(backbone.num_channels)
    tokens = config.grid**2
    if config.cache is None:
        chosen = _spread(train_rows, mixture.class_numbers[train_rows])
        moments = _moments(images, chosen, backbone, world, device, gather)
        whitening.set_moments(moments, tokens)
        return PreparedFeatures(backbone, whitening.to(device), images, False, digest, chosen, moments)
    caches = {
        dataset.name: open_cache(config.cache, dataset, backbone, digest)
        or _build(config.cache, dataset, backbone, digest, world, device, gather)
        for dataset in mixture.datasets
    }
    cached = CachedSource(mixture, caches)
    moments = cached.moments(train_rows)
    whitening.set_moments(moments, tokens)
    return PreparedFeatures(backbone, whitening.to(device), cached, True, digest, train_rows, moments)


def _spread(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """About `MAX_WHITENING_IMAGES` of the rows, evenly spaced, and at least one of every class."""
    first_of_class = np.unique(classes, return_index=True)[1]
    return np.union1d(rows[:: -(-len(rows) // MAX_WHITENING_IMAGES)], rows[first_of_class])


def _build(
    url: str,
    dataset: Any,
    backbone: Backbone,
    digest: str,
    world: World,
    device: torch.device,
    gather: GatherObjects,
) -> FeatureCache:
    gathered = gather(compute_shards(url, dataset, backbone, digest, world, device))
    if world.is_main:
        seal_cache(url, dataset, backbone, digest, [part for parts in gathered for part in parts])
    gather(None)  # nobody opens the cache before the main process has sealed it
    cache = open_cache(url, dataset, backbone, digest)
    assert cache is not None
    return cache


def _moments(
    images: ImageSource,
    rows: np.ndarray,
    backbone: Backbone,
    world: World,
    device: torch.device,
    gather: GatherObjects,
) -> np.ndarray:
    share = world.share(len(rows))
    parts = [np.zeros((0, 2, backbone.num_channels))]
    for start in range(share.start, share.stop, backbone.chunk):
        stop = min(start + backbone.chunk, share.stop)
        batch = torch.stack([images.read(int(row)) for row in rows[start:stop]])
        parts.append(image_moments(backbone(batch.to(device))))
    return np.concatenate(gather(np.concatenate(parts)))
