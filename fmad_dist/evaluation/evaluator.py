"""Score every test image exactly once on any number of processes, and merge to exact results.

Work is dealt in fixed batches of consecutive samples, and on a CPU every process computes with one thread, so that an
image's scores have the same bits whoever computes them. One collective at the end carries the states to the main rank.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation.channels import channels_on_map
from fmad_dist.evaluation.partial import PartialStates
from fmad_dist.evaluation.protocol import mask_on_map
from fmad_dist.evaluation.regions import Channel
from fmad_dist.evaluation.speed import Stopwatch
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.flow.noise import content_keys
from fmad_dist.progress import Progress
from fmad_dist.stream.batches import Failure
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.shards import ReadOptions
from fmad_dist.stream.sources import ImageSource
from fmad_dist.world import World

BATCH = 8
PATIENCE_S = 300.0  # an evaluation waits this long for its storage


@dataclass(frozen=True, slots=True)
class TestBatch:
    """Consecutive test samples with their pixels uint8 [B, 3, S, S], and masks bool [M, M] and single defects each."""

    rows: tuple[int, ...]
    images: torch.Tensor
    masks: tuple[np.ndarray, ...]
    channels: tuple[tuple[Channel, ...], ...]


class TestImages(Dataset):
    """Batches addressed by lists of global indices."""

    def __init__(self, mixture: Mixture, image_size: int, map_size: int) -> None:
        self.mixture = mixture
        self.source = ImageSource(mixture, image_size, ReadOptions(patience_s=PATIENCE_S))
        self.map_size = map_size

    def __getitem__(self, rows: Sequence[int]) -> TestBatch | Failure:
        try:
            found = self.source.decode(self.source.fetch(rows))
            bad = next((image for image in found if isinstance(image, BadSample)), None)
            if bad is not None:  # results without it would not be those of the benchmark
                raise bad
            images = torch.stack([image for image in found if not isinstance(image, BadSample)])
            masks, channels = zip(*(self._truth(row) for row in rows), strict=True)
            return TestBatch(tuple(rows), images, masks, channels)
        except UserError as error:
            return Failure(str(error))

    def _truth(self, row: int) -> tuple[np.ndarray, tuple[Channel, ...]]:
        dataset, position = self.mixture.locate(row)
        raw = self.source.readers[dataset.name].masks(position)
        channels = channels_on_map(dataset.manifest, dataset.sample(position), raw, self.map_size)
        return mask_on_map(raw, self.map_size), channels


def evaluate_share(
    detector: Detector,
    mixture: Mixture,
    world: World,
    device: torch.device,
    workers: int,
    done: Set[str] = frozenset(),
    partial: PartialStates | None = None,
    watch: Stopwatch | None = None,
) -> EvaluationState:
    """The state of this rank's share of the test split without the sample ids that are `done`; `partial` keeps it
    for the case that the evaluation is killed, `watch` notes where the time goes.

    Raises:
        UserError: a test image cannot be read, or its class was never trained on.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    state = EvaluationState(detector.spec.protocol)
    detector.place(device)
    watch = watch or Stopwatch(device)
    for batch in watch.reading(own_test_batches(detector, mixture, world, workers, "evaluate", done)):
        with watch.phase("features"):
            x = detector.features(batch.images)
        with watch.phase("score"):
            found = detector.score(x, content_keys(batch.images))
        with watch.phase("metrics"):
            for scored in scored_images(mixture, batch, found):
                state.update(scored)
        with watch.phase("save"):
            if partial is not None:
                partial.save(state)
        watch.num_images += len(batch.rows)
    return state


def own_test_batches(
    detector: Detector, mixture: Mixture, world: World, workers: int, title: str, done: Set[str] = frozenset()
) -> Iterator[TestBatch]:
    """This rank's share of the test split in fixed batches, with a progress bar; batches that are done are left out.

    Raises:
        UserError: a test image cannot be read.
    """
    rows = mixture.rows("test")
    every = [rows[start : start + BATCH].tolist() for start in range(0, len(rows), BATCH)]
    batches = [batch for batch in every if mixture.sample_id(batch[0]) not in done][world.rank :: world.size]
    images = TestImages(mixture, detector.image_size, detector.spec.protocol.map_size)
    with Progress(title, sum(len(batch) for batch in batches), shown=world.is_main) as progress:
        for batch in _read(images, batches, workers):
            yield batch
            progress.advance(len(batch.rows))


def scored_images(mixture: Mixture, batch: TestBatch, found: Detections) -> Iterator[ScoredImage]:
    """What the detector found, image by image, with what is known about each."""
    scores, maps = found.scores.tolist(), found.maps.float().cpu().numpy()
    for position, row in enumerate(batch.rows):
        yield _scored(mixture, row, batch, position, scores[position], maps[position])


def merge_states(parts: Sequence[bytes], mixture: Mixture) -> EvaluationState:
    """One state from the encoded states of all ranks.

    Raises:
        UserError: the scored ids are not exactly the test split of the manifests.
    """
    state = EvaluationState.from_bytes(parts[0])
    for part in parts[1:]:
        state.merge(EvaluationState.from_bytes(part))
    wanted = {mixture.sample_id(int(row)) for row in mixture.rows("test")}
    missing, extra = sorted(wanted - state.sample_ids), sorted(state.sample_ids - wanted)
    if missing or extra:
        raise UserError(
            f"evaluation: {len(missing)} test images were not scored and {len(extra)} are not in the manifests (first: "
            f"{(missing + extra)[0]}); run the evaluation again on unchanged manifests."
        )
    return state


def _scored(
    mixture: Mixture, row: int, batch: TestBatch, position: int, score: float, anomaly_map: np.ndarray
) -> ScoredImage:
    dataset, place = mixture.locate(row)
    sample = dataset.sample(place)
    return ScoredImage(
        sample_id=sample.sample_id,
        class_name=f"{sample.dataset}/{sample.class_name}",
        label=sample.label,
        defect_type=sample.defect_type,
        image_score=score,
        anomaly_map=anomaly_map,
        mask=batch.masks[position],
        image=batch.images[position].permute(1, 2, 0).numpy(),
        channels=batch.channels[position],
    )


def _read(images: TestImages, batches: list[list[int]], workers: int) -> Iterator[TestBatch]:
    loader: DataLoader = DataLoader(
        images,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    for item in loader:
        if isinstance(item, Failure):
            raise UserError(item.message)
        yield item
