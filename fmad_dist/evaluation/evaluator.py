"""Score every test image exactly once on any number of processes, and merge to exact results.

Work is dealt in fixed shards of fixed batches of consecutive samples, and on a CPU every process computes with one
thread, so that an image's scores have the same bits whoever computes them. A shard is scored by one rank and kept whole
or not at all. One collective at the end carries the states to the main rank.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation.channels import single_defects, source_size
from fmad_dist.evaluation.map_files import MapFiles
from fmad_dist.evaluation.partial import PartialStates
from fmad_dist.evaluation.protocol import mask_on_map
from fmad_dist.evaluation.regions import SingleDefects
from fmad_dist.evaluation.speed import Stopwatch
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.flow.noise import content_keys
from fmad_dist.progress import Progress
from fmad_dist.shares import in_shards
from fmad_dist.stream.batches import Failure
from fmad_dist.stream.dataset import Sample
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.shards import ReadOptions
from fmad_dist.stream.sources import ImageSource
from fmad_dist.world import World

BATCH = 8
PATIENCE_S = 300.0  # an evaluation waits this long for its storage


@dataclass(frozen=True, slots=True)
class TestBatch:
    """Consecutive test samples with their pixels uint8 [B, 3, S, S], and the mask bool [M, M] and, where the dataset
    annotates them, the single defects of each; and the number of the shard that ends with it, if one does."""

    rows: tuple[int, ...]
    images: torch.Tensor
    masks: tuple[np.ndarray, ...]
    defects: tuple[SingleDefects | None, ...]
    ends_shard: int | None = None


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
            masks, defects = zip(*(self._truth(row) for row in rows), strict=True)
            return TestBatch(tuple(rows), images, masks, defects)
        except UserError as error:
            return Failure(str(error))

    def _truth(self, row: int) -> tuple[np.ndarray, SingleDefects | None]:
        dataset, position = self.mixture.locate(row)
        reader = self.source.readers[dataset.name]
        raw = reader.masks(position)
        singly = dataset.manifest.mask_semantics == "channel"
        defects = single_defects(reader, position, raw, self.map_size) if singly else None
        return mask_on_map(raw, self.map_size), defects


def evaluate_share(
    detector: Detector,
    mixture: Mixture,
    world: World,
    device: torch.device,
    workers: int,
    done: Set[str] = frozenset(),
    partial: PartialStates | None = None,
    files: MapFiles | None = None,
    watch: Stopwatch | None = None,
    compiled: bool = False,
) -> EvaluationState:
    """The state of this rank's share of the test split without the sample ids that are `done`; `partial` keeps it
    for the case that the evaluation is killed, `files` are the maps that are written beside, `watch` notes where the
    time goes.

    Raises:
        UserError: a test image cannot be read.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    state = EvaluationState(detector.spec.protocol)
    detector.place(device, compiled)
    watch = watch or Stopwatch(device)
    for batch in watch.reading(own_test_batches(detector, mixture, world, workers, "evaluate", done)):
        with watch.phase("features"):
            x = detector.features(batch.images)
        with watch.phase("score"):
            found = detector.score(x, content_keys(batch.images))
        with watch.phase("metrics"):
            images = list(scored_images(mixture, batch, found))
            for scored in images:
                state.update(scored)
        with watch.phase("save"):
            if files is not None:
                for row, scored in zip(batch.rows, images, strict=True):
                    files.add(scored, *source_size(_sample(mixture, row)))
            if batch.ends_shard is not None:
                _end_shard(batch.ends_shard, state, partial, files)
        watch.num_images += len(batch.rows)
    if files is not None:
        files.wait()
    return state


def _end_shard(number: int, state: EvaluationState, partial: PartialStates | None, files: MapFiles | None) -> None:
    if files is not None:
        files.end_shard(number)
    if partial is not None and partial.is_due:
        if files is not None:
            files.wait()  # whatever a kept state counts has its maps
        partial.save(state)


def test_shards(mixture: Mixture) -> list[list[Sequence[int]]]:
    """The global indices of the test split in order, in batches, in shards: a function of the data alone."""
    return in_shards(mixture.rows("test").tolist(), BATCH)


def own_test_batches(
    detector: Detector, mixture: Mixture, world: World, workers: int, title: str, done: Set[str] = frozenset()
) -> Iterator[TestBatch]:
    """This rank's share of the test split in fixed batches, with a progress bar; shards that are done are left out.

    Raises:
        UserError: a test image cannot be read.
    """
    left = [(n, shard) for n, shard in enumerate(test_shards(mixture)) if mixture.sample_id(shard[0][0]) not in done]
    own = [(batch, n if batch is shard[-1] else None) for n, shard in left[world.rank :: world.size] for batch in shard]
    images = TestImages(mixture, detector.image_size, detector.spec.protocol.map_size)
    with Progress(world.own(title), sum(len(batch) for batch, _ in own), shown=world.is_main) as progress:
        for batch, (_, ended) in zip(_read(images, [batch for batch, _ in own], workers), own, strict=True):
            yield replace(batch, ends_shard=ended)
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
    sample = _sample(mixture, row)
    return ScoredImage(
        sample_id=sample.sample_id,
        class_name=f"{sample.dataset}/{sample.class_name}",
        label=sample.label,
        defect_type=sample.defect_type,
        image_score=score,
        anomaly_map=anomaly_map,
        mask=batch.masks[position],
        image=batch.images[position].permute(1, 2, 0).numpy(),
        defects=batch.defects[position],
        group=sample.group,
    )


def _sample(mixture: Mixture, row: int) -> Sample:
    dataset, place = mixture.locate(row)
    return dataset.sample(place)


def _read(images: TestImages, batches: list[Sequence[int]], workers: int) -> Iterator[TestBatch]:
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
