"""Before training: find or compute the feature caches, and set the whitening from the training normals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fmad_dist.config import FeatureConfig
from fmad_dist.errors import UserError
from fmad_dist.features.backbones import PIXELS, Backbone, FeatureSpec, chunk_for, load_backbone
from fmad_dist.features.cache import CachedSource, FeatureCache, compute_shards, open_cache, seal_cache
from fmad_dist.features.whitening import Whitening, image_moments
from fmad_dist.stream.mixture import Mixture, TrainSplit
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.shards import ReadOptions
from fmad_dist.stream.sources import SampleSource
from fmad_dist.world import World

MAX_WHITENING_IMAGES = 4096  # without a cache, the whitening is estimated on at most this many training normals


class TrainingImages(Protocol):
    """The images of a run: which there are, which of them train, and how to read them."""

    mixture: Mixture
    split: TrainSplit
    images: SampleSource


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
    bad: tuple[BadSample, ...] = ()  # images that were left out because they are damaged

    def class_means(self, class_of_row: np.ndarray, num_classes: int) -> torch.Tensor:
        """Mean whitened feature vector of each class over its training normals, float32 [K, C]."""
        pooled = self.whitening.pooled(self.moments, self.backbone.spec.grid**2)
        means = [pooled[torch.from_numpy(class_of_row == number)].mean(dim=0) for number in range(num_classes)]
        return torch.stack(means)


def feature_spec(config: FeatureConfig) -> FeatureSpec:
    taps = (0,) if config.backbone == PIXELS else config.taps
    return FeatureSpec(config.backbone, taps, config.grid, config.image_size, config.reduction)


def prepare_features(
    config: FeatureConfig,
    data: TrainingImages,
    world: World,
    device: torch.device,
    gather: GatherObjects,
    reading: ReadOptions | None = None,
    max_bad_samples: int = 10,
) -> PreparedFeatures:
    """Called by every rank; `gather` returns the objects of all ranks in rank order, on every rank.

    Damaged images are left out and listed.

    Raises:
        UserError: the backbone or a cache cannot be used, or a class has no readable image.
    """
    backbone = load_backbone(feature_spec(config), config.weights).to(device)
    backbone.chunk = chunk_for(device)
    digest = backbone.weights_digest()
    mixture, train_rows = data.mixture, data.split.train
    whitening = Whitening(backbone.num_channels, config.norm)
    tokens = config.grid**2
    if config.cache is None:
        source = data.images
        rows = _spread(train_rows, mixture.class_numbers[train_rows])
        moments, bad = _moments(data.images, rows, backbone, world, device, gather)
    else:
        caches = {
            dataset.name: open_cache(config.cache, dataset, backbone, digest)
            or _build(config.cache, dataset, backbone, digest, world, device, gather, reading, max_bad_samples)
            for dataset in mixture.datasets
        }
        for cache in caches.values():
            cache.store.patience_s = reading.patience_s if reading else cache.store.patience_s
        source = cached = CachedSource(mixture, caches)
        rows, moments = train_rows, cached.moments(train_rows)
        bad = cached.damaged(train_rows[np.isnan(moments).any(axis=(1, 2))])
    readable = ~np.isnan(moments).any(axis=(1, 2))
    rows, moments = rows[readable], moments[readable]
    _check_classes(mixture, rows, bad)
    whitening.set_moments(moments, tokens)
    is_cached = config.cache is not None
    return PreparedFeatures(backbone, whitening.to(device), source, is_cached, digest, rows, moments, tuple(bad))


def _check_classes(mixture: Mixture, rows: np.ndarray, bad: list[BadSample]) -> None:
    """Every class has a readable image; there can only be one without if images are damaged."""
    seen = np.bincount(mixture.class_numbers[rows], minlength=len(mixture.class_names))
    if (seen == 0).any():
        name = mixture.class_names[int(np.argmin(seen))]
        raise UserError(f"class {name}: none of its images could be read, first: {bad[0]}")


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
    reading: ReadOptions | None,
    max_bad_samples: int,
) -> FeatureCache:
    """Raises:
    UserError: so many images are damaged that the cache is not worth keeping.
    """
    gathered = gather(compute_shards(url, dataset, backbone, digest, world, device, reading))
    bad = [one for parts in gathered for part in parts for one in part["bad"]]
    if len(bad) > max_bad_samples:
        raise UserError(f"data.max_bad_samples: {len(bad)} damaged samples, {max_bad_samples} allowed; {bad[0]}")
    if world.is_main:
        seal_cache(url, dataset, backbone, digest, [part for parts in gathered for part in parts])
    gather(None)  # nobody opens the cache before the main process has sealed it
    cache = open_cache(url, dataset, backbone, digest)
    assert cache is not None
    return cache


def _moments(
    images: SampleSource,
    rows: np.ndarray,
    backbone: Backbone,
    world: World,
    device: torch.device,
    gather: GatherObjects,
) -> tuple[np.ndarray, list[BadSample]]:
    """Channel sums of the rows' images, float64 [n, 2, C], NaN for damaged ones, and those."""
    share = world.share(len(rows))
    sums = np.full((len(share), 2, backbone.num_channels), np.nan)
    bad: list[BadSample] = []
    for start in range(0, len(share), backbone.chunk):
        chosen = rows[share][start : start + backbone.chunk]
        found = images.decode(images.fetch(chosen.tolist()))
        readable = [(start + n, image) for n, image in enumerate(found) if not isinstance(image, BadSample)]
        bad += [image for image in found if isinstance(image, BadSample)]
        if readable:
            places, batch = zip(*readable, strict=True)
            sums[list(places)] = image_moments(backbone(torch.stack(batch).to(device)))
    parts = gather((sums, bad))
    return np.concatenate([part for part, _ in parts]), [one for _, some in parts for one in some]
