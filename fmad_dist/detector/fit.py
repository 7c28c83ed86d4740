"""What is fitted to normal images without training the network: the scorer, and thresholds to the held-out ones.

Thresholds can be fitted again to any normal images of a detector's classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.flow.noise import content_keys
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.calibration import Calibration, fit_thresholds
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import TrainSplit
from fmad_dist.stream.plan import by_class
from fmad_dist.stream.reader import BadSample

BATCH = 16
NoteBad = Callable[[list[BadSample]], None]


class Classes(Protocol):
    """The class of every row of some images."""

    @property
    def class_numbers(self) -> np.ndarray: ...  # int64 [N], position in the detector's class_names


class NormalData(Protocol):
    """Normal images, which of them trained and which were held out, and what reads them; a run's data is one."""

    @property
    def mixture(self) -> Classes: ...
    @property
    def split(self) -> TrainSplit: ...
    @property
    def images(self) -> SampleSource: ...


def fit_scorer(detector: Detector, data: NormalData, world: World) -> Detector:
    """The detector with its scorer fitted to normal images, if the scorer needs that; not calibrated. Every rank calls.

    Raises:
        UserError: no normal image of a class can be read.
    """
    return detector.scored_by(detector.scorer.fit(DetectorNormals(detector, data, world)))


class DetectorNormals:
    """The normal images of the training data as a detector's features: a `scoring.interface.NormalImages`."""

    def __init__(self, detector: Detector, data: NormalData, world: World) -> None:
        self.world = world
        self.field: Velocity = detector.field
        self.class_names: Sequence[str] = detector.spec.class_names
        self.class_means = detector.class_means
        self.num_locations = detector.spec.network.grid**2
        self._detector = detector
        self._data = data
        numbers = data.mixture.class_numbers[data.split.train]
        self._rows = by_class(data.split.train, numbers, len(self.class_names))
        self.training_counts: Sequence[int] = [len(rows) for rows in self._rows]

    def training(self, class_number: int, count: int) -> Iterator[Tensor]:
        rows = self._rows[class_number]
        chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return map(self._detector.features, self._readable(rows[chosen]))

    def held_out(self) -> Iterator[tuple[Tensor, list[int]]]:
        for images in self._readable(own_held_out(self._data, self.world)):
            yield self._detector.features(images), content_keys(images)

    def _readable(self, rows: np.ndarray) -> Iterator[Tensor]:
        for found in image_batches(self._data, rows):
            readable = [image for image in found if not isinstance(image, BadSample)]
            if readable:
                yield torch.stack(readable)


def own_held_out(data: NormalData, world: World) -> np.ndarray:
    """Global indices of this rank's share of the held-out normals."""
    return data.split.held_out[world.share(len(data.split.held_out))]


def image_batches(data: NormalData, rows: np.ndarray) -> Iterator[list[Tensor | BadSample]]:
    """The images at these global indices, uint8 [3, S, S] each, or why they are damaged; a few at a time."""
    for start in range(0, len(rows), BATCH):
        yield data.images.decode(data.images.fetch(rows[start : start + BATCH].tolist()))


def calibrate(
    detector: Detector, data: NormalData, world: World, note_bad: NoteBad, false_alarm_rate: float
) -> Detector:
    """The detector with its scorer fitted, and with thresholds from the scores of held-out normals, which no training
    step has seen. Every rank calls and scores a share of them; `note_bad` is told of the damaged ones.

    Raises:
        UserError: all held-out images of a class are damaged, or whatever `note_bad` refuses.
    """
    return with_thresholds(fit_scorer(detector, data, world), data, world, note_bad, false_alarm_rate)


def with_thresholds(
    detector: Detector, data: NormalData, world: World, note_bad: NoteBad, false_alarm_rate: float
) -> Detector:
    """The same for a detector whose scorer is fitted. Thresholds of classes without held-out images are infinite."""
    own, scores = own_held_out(data, world), list[float]()
    with Progress(world.own("calibrate"), len(own), shown=world.is_main) as progress:
        for found in image_batches(data, own):
            bad = [image for image in found if isinstance(image, BadSample)]
            readable = [image for image in found if not isinstance(image, BadSample)]
            scored = iter(detector(torch.stack(readable)).scores.tolist() if readable else [])
            scores += [float("nan") if isinstance(image, BadSample) else next(scored) for image in found]
            note_bad(bad)
            progress.advance(len(found))
    gathered = np.array([score for part in world.gather(scores) for score in part])
    usable, numbers = ~np.isnan(gathered), data.mixture.class_numbers[data.split.held_out]
    names = detector.spec.class_names
    unread = set(numbers.tolist()) - set(numbers[usable].tolist())
    if unread:
        raise UserError(f"class {names[min(unread)]}: none of its normal images could be read; restore them.")
    calibration = fit_thresholds(gathered[usable], numbers[usable], len(names), false_alarm_rate)
    return detector.with_calibration(replace(calibration, parts=detector.scorer.statistics))


@dataclass(frozen=True)
class GivenNormals:
    """Normal images that a user gives for a detector's classes, as if they were the held-out ones of a training."""

    images: SampleSource  # of rows 0 to N - 1
    class_numbers: np.ndarray  # int64 [N], position in the detector's class_names
    origin: Mapping[str, str]  # what they are: a digest by dataset or folder

    @property
    def mixture(self) -> "GivenNormals":
        return self

    @property
    def split(self) -> TrainSplit:
        return TrainSplit(np.zeros(0, dtype=np.int64), np.arange(len(self.class_numbers)))


def recalibrate(detector: Detector, normals: GivenNormals, note_bad: NoteBad, false_alarm_rate: float) -> Detector:
    """The detector with thresholds at this rate from the scores of these images; `note_bad` is told of damaged ones.

    A class without images keeps its threshold. What belongs to all classes, the global threshold and the statistics of
    a fusion, is fitted again only if every class has images. A deviation stays as it was fitted to training normals.

    Raises:
        UserError: there are no images, none of a class can be read, or whatever `note_bad` refuses.
    """
    if not len(normals.class_numbers):
        raise UserError("no normal images found; check --data, --split and --source.")
    world, before = World(), detector.spec.calibration
    is_complete = len(np.unique(normals.class_numbers)) == len(detector.spec.class_names)
    if is_complete and detector.scorer.statistics is not None:
        detector = fit_scorer(detector, normals, world)
    calibrated = with_thresholds(detector, normals, world, note_bad, false_alarm_rate)
    found = calibrated.spec.calibration
    assert found is not None
    kept = found if is_complete or before is None else _completed(found, before)
    return calibrated.with_calibration(replace(kept, given=dict(normals.origin)))


def _completed(found: Calibration, before: Calibration) -> Calibration:
    """What was found, with what classes without images and all classes together had before."""
    empty = [count == 0 for count in found.num_images]
    return replace(
        found,
        thresholds=tuple(np.where(empty, before.thresholds, found.thresholds).tolist()),
        margins=tuple(np.where(empty, before.margins, found.margins).tolist()),
        num_images=tuple(np.where(empty, before.num_images, found.num_images).tolist()),
        global_threshold=before.global_threshold,
        global_margin=before.global_margin,
    )
