"""What a deviation scorer is fitted to: training normals of every class."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.features.prepare import GatherObjects, TrainingImages
from fmad_dist.progress import Progress
from fmad_dist.scoring.config import DeviationConfig
from fmad_dist.scoring.coreset import Advance
from fmad_dist.scoring.deviation import Deviation, Normality
from fmad_dist.stream.reader import BadSample
from fmad_dist.world import World

BATCH = 16
FEWEST = 10  # of a class, whatever the limit of all is
MOST_VECTORS = 500_000  # of a class that are held at a time: about 1.5 GB at 192 channels


def fit_deviation(detector: Detector, data: TrainingImages, world: World, gather: GatherObjects) -> None:
    """Every rank calls. A class is one rank's work, so the number of ranks does not change a bit.

    Raises:
        UserError: no training image of a class can be read.
    """
    scorer, config = detector.scorer, detector.spec.scorer
    assert isinstance(scorer, Deviation)
    assert isinstance(config, DeviationConfig)
    count = len(detector.spec.class_names)
    most = MOST_VECTORS // detector.spec.network.grid**2
    chosen = _rows(data, count, config.images, most)
    own = range(world.rank, count, world.size)
    found: dict[int, Normality] = {}
    total = sum(len(chosen[number]) for number in own)
    with Progress(world.own("fit to training normals"), total, shown=world.is_main) as progress:
        for number in own:
            name, parts = detector.spec.class_names[number], []
            for start in range(0, len(chosen[number]), BATCH):
                rows = chosen[number][start : start + BATCH]
                parts += _vectors(detector, scorer, data, rows)
                progress.advance(len(rows), note=name)
            if not parts:
                raise UserError(f"class {name}: no training image could be read; restore its shards.")
            one = scorer.normality(torch.cat(parts), _noted(progress, name))
            found[number] = Normality(*(getattr(one, field.name).cpu() for field in fields(one)))
    everything = {number: one for part in gather(found) for number, one in part.items()}
    scorer.take(detector.class_means, [everything[number] for number in range(count)])


def _noted(progress: Progress, name: str) -> Advance:
    """Says how many vectors of a class are kept already: with many images that takes a minute."""
    kept = 0

    def advance(count: int) -> None:
        nonlocal kept
        kept += count
        progress.advance(0, note=f"{name}: {kept} vectors kept")

    return advance


def _rows(data: TrainingImages, count: int, images: int, most: int) -> list[np.ndarray]:
    """Training rows of each class, evenly spaced: `most`, or as many of each as make up `images` together."""
    numbers = data.mixture.class_numbers[data.split.train]
    rows = [data.split.train[numbers == number] for number in range(count)]
    limit = max(FEWEST, min(most, common_limit([len(own) for own in rows], images)))
    return [own[np.linspace(0, len(own) - 1, min(limit, len(own))).round().astype(int)] for own in rows]


def common_limit(counts: Sequence[int], total: int) -> int:
    """The largest limit with which `counts`, cut to it, do not exceed `total` together."""
    left = total
    for place, count in enumerate(ordered := sorted(counts)):
        share = left // (len(ordered) - place)
        if share < count:
            return share
        left -= count
    return max(counts)


@torch.inference_mode()
def _vectors(detector: Detector, scorer: Deviation, data: TrainingImages, rows: np.ndarray) -> list[torch.Tensor]:
    """Float16 [n, C, H, W] of the readable images, in a list; nothing if there is none."""
    found = data.images.decode(data.images.fetch(rows.tolist()))
    readable = [image for image in found if not isinstance(image, BadSample)]
    if not readable:
        return []
    return [scorer.part.vectors(detector.field, detector.features(torch.stack(readable))).half()]
