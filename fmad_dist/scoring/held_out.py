"""What is fitted to normal images after training: a scorer that needs it, and thresholds to the held-out ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.features.prepare import TrainingImages
from fmad_dist.flow.noise import content_keys
from fmad_dist.scoring.calibration import Calibration, fit_thresholds
from fmad_dist.scoring.deviation import Deviation
from fmad_dist.scoring.fusion import Fusion, PartStatistics, fit_statistics
from fmad_dist.scoring.training_normals import fit_deviation
from fmad_dist.stream.reader import BadSample
from fmad_dist.world import World

BATCH = 16

Gather = Callable[[Any], list[Any]]
NoteBad = Callable[[list[BadSample]], None]


def calibrate(
    detector: Detector, data: TrainingImages, world: World, gather: Gather, note_bad: NoteBad, false_alarm_rate: float
) -> Calibration:
    """Every rank calls and scores a share of the held-out normals, which no training step has seen.

    Raises:
        UserError: all held-out images of a class are damaged, or whatever `note_bad` refuses.
    """
    parts = fit_scorer(detector, data, world, gather)
    rows = data.split.held_out
    share = rows[world.share(len(rows))]
    scores: list[float] = []
    for readable, found in _batches(share, data):
        scored = iter(detector(torch.stack(readable)).scores.tolist() if readable else [])
        scores += [float("nan") if isinstance(image, BadSample) else next(scored) for image in found]
        note_bad([image for image in found if isinstance(image, BadSample)])
    gathered = np.array([score for part in gather(scores) for score in part])
    usable = ~np.isnan(gathered)
    numbers = data.mixture.class_numbers[rows][usable]
    num_classes = len(detector.spec.class_names)
    empty = set(range(num_classes)) - set(numbers.tolist())
    if empty:
        name = detector.spec.class_names[min(empty)]
        raise UserError(f"class {name}: no held-out image could be read, so it has no threshold; restore its shards.")
    fitted = fit_thresholds(gathered[usable], numbers, num_classes, false_alarm_rate)
    return replace(fitted, parts=parts)


def fit_scorer(
    detector: Detector, data: TrainingImages, world: World, gather: Gather
) -> tuple[PartStatistics, ...] | None:
    """Fit a fusion to held-out normals and return what is known of its parts, or a deviation to training normals; every
    rank calls. Other scorers need neither."""
    if isinstance(detector.scorer, Deviation):
        fit_deviation(detector, data, world, gather)
    fusion = detector.scorer
    if not isinstance(fusion, Fusion):
        return None
    rows = data.split.held_out
    share = rows[world.share(len(rows))]
    sums: list[Any] = []
    for readable, _ in _batches(share, data):
        if readable:
            images = torch.stack(readable)
            with torch.inference_mode():
                sums += fusion.sums(detector.field, detector.features(images), content_keys(images)).tolist()
    fusion.statistics = fit_statistics([one for part in gather(sums) for one in part], detector.spec.network.grid**2)
    return fusion.statistics


def _batches(share: np.ndarray, data: TrainingImages) -> Iterator[tuple[list[torch.Tensor], list[Any]]]:
    """(readable images, all images or why they are damaged), a few at a time."""
    for start in range(0, len(share), BATCH):
        found = data.images.decode(data.images.fetch(share[start : start + BATCH].tolist()))
        yield [image for image in found if not isinstance(image, BadSample)], list(found)
