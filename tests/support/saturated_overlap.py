"""Images whose defects are annotated singly, and their AU-sPRO by the official definition, written out slowly."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.regions import Channel, SingleDefects
from fmad_dist.metrics.results import Results
from fmad_dist.metrics.state import EvaluationState, ScoredImage

Case = tuple[np.ndarray, list[list[Channel]]]  # maps [n, H, W] and the channels of each


TYPES = ("logical_anomalies", "structural_anomalies")


def official(maps: Sequence[np.ndarray], channels: Sequence[Sequence[Channel]], limit: float) -> float:
    """Every distinct score as a threshold; a pixel is found at or above it. Points before and after the limit are
    joined by a line. Images may differ in size."""
    thresholds = np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]

    def num_found(scores: np.ndarray) -> np.ndarray:
        return scores.size - np.searchsorted(np.sort(scores), thresholds, side="left")

    false, num_normal, overlaps = np.zeros(thresholds.size), 0, []
    for anomaly_map, of_image in zip(maps, channels, strict=True):
        outside = np.ones(anomaly_map.shape, dtype=bool)
        for channel in of_image:
            outside &= ~channel.mask
            overlaps.append(np.minimum(num_found(anomaly_map[channel.mask]) / channel.saturation, 1.0))
        false += num_found(anomaly_map[outside])
        num_normal += int(outside.sum())
    points = [(0.0, 0.0), *zip(false / num_normal, np.mean(overlaps, axis=0), strict=True)]
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y1) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def random_case(seed: int, num_maps: int = 8, size: int = 16) -> Case:
    """Every third image is normal; the channels of an image overlap and saturate anywhere between one pixel and all."""
    rng = np.random.default_rng(seed)
    maps, channels = rng.normal(size=(num_maps, size, size)), []
    for image in range(num_maps):
        of_image = []
        for _ in range(0 if image % 3 == 0 else int(rng.integers(1, 4))):
            mask = np.zeros((size, size), dtype=bool)
            (y, x), (height, width) = rng.integers(0, size - 4, 2), rng.integers(1, 9, 2)
            mask[y : y + height, x : x + width] = True
            maps[image][mask] += 1.5
            of_image.append(Channel(mask, int(rng.integers(1, mask.sum() + 1))))
        channels.append(of_image)
    return maps.astype(np.float32).astype(np.float64), channels


def scored(
    name: str,
    anomaly_map: np.ndarray,
    of_image: Sequence[Channel],
    defect_type: str,
    native: tuple[int, int] | None = None,
) -> ScoredImage:
    """An image whose single defects are on its map, or at the size (height, width) `native`."""
    score, image = float(anomaly_map.max()), np.zeros((8, 8, 3), dtype=np.uint8)
    kind, label = (defect_type, 1) if of_image else ("good", 0)
    as_map = anomaly_map.astype(np.float32)
    mask = np.full(as_map.shape, label == 1)
    mask[0] = False
    defects = SingleDefects(tuple(of_image), *(native or as_map.shape), native is not None)
    return ScoredImage(name, "loco/a", label, kind, score, as_map, mask, image, defects)


def images_of(case: Case) -> list[ScoredImage]:
    return [scored(f"loco/{i}", one, own, TYPES[i % 2]) for i, (one, own) in enumerate(zip(*case, strict=True))]


def native_images(seed: int, num_images: int = 9, map_size: int = 8) -> list[ScoredImage]:
    """Images of several sizes with overlapping channels at their own size, every third one normal."""
    rng, images = np.random.default_rng(seed), []
    for i in range(num_images):
        height, width = (int(side) for side in rng.integers(9, 30, 2))
        channels = []
        for _ in range(0 if i % 3 == 0 else int(rng.integers(1, 4))):
            mask = np.zeros((height, width), dtype=bool)
            (top, left), extent = rng.integers(0, 8, 2), rng.integers(1, 12, 2)
            mask[top : top + extent[0], left : left + extent[1]] = True
            channels.append(Channel(mask, int(rng.integers(1, mask.sum() + 1))))
        anomaly_map = rng.normal(size=(map_size, map_size)) + (i % 3 > 0)
        images.append(scored(f"loco/{i}", anomaly_map, channels, TYPES[i % 2], (height, width)))
    return images


def results_of(images: Sequence[ScoredImage], map_size: int) -> Results:
    state = EvaluationState(Protocol(map_size=map_size))
    for image in images:
        state.update(image)
    return compute_results(state)


def channels_size(image: ScoredImage) -> tuple[int, int]:
    assert image.defects is not None
    return image.defects.height, image.defects.width


def stretched(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear by torch, in double precision; rounded, because equal values may differ in their last bit."""
    found = torch.from_numpy(anomaly_map.astype(np.float64))[None, None]
    return torch.nn.functional.interpolate(found, size, mode="bilinear", align_corners=False)[0, 0].numpy()
