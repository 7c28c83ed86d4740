"""What training needs to know about its images, whether an index says it or tars are read in order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.stream.batches import Batch, StreamDataset, stream_batches
from fmad_dist.stream.dataset import INDEX_SCHEMA, Dataset
from fmad_dist.stream.image_source import ImageSource, SampleSource
from fmad_dist.stream.manifest import FOREIGN, ClassCounts, IndexInfo, Manifest, Rendition
from fmad_dist.stream.mixture import Mixture, TrainSplit
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sequential_batches import sequential_batches
from fmad_dist.stream.sequential_source import Encoded, SequentialSource, survey
from fmad_dist.stream.training_stream import open_stream

GUARANTEES = (
    "data.mode sequential: the order of samples depends on the number of processes and workers, a resumed run begins a "
    "new pass instead of going on where it stopped, and processes pass over their own tars as often as they need. All "
    "images are one class; whitening and thresholds come from the first images of the tars. `fmad data index` gives "
    "the exact stream."
)


class TrainingData(ABC):
    """The images that train and those that calibrate, and the batches of a rank."""

    mixture: Mixture
    split: TrainSplit
    digest: str  # checkpoints of other data are refused by it
    epoch_size: int | None  # None: not known
    images: SampleSource  # uint8 images by global index, for whitening and thresholds
    bad: tuple[BadSample, ...] = ()  # damaged samples that were met already

    @abstractmethod
    def batches(
        self, features: SampleSource, layout: BatchLayout, rank: int, starts: Sequence[int], pin: bool
    ) -> Iterator[Batch]:
        """Read the micro batches of a rank from `features`, in order: those of the steps that begin at the stream
        positions `starts`."""


class IndexedData(TrainingData):
    """The exact stream of converted or indexed datasets."""

    def __init__(self, config: RunConfig) -> None:
        self.stream = open_stream(config.data, config.train.seed)
        self.mixture, self.split = self.stream.mixture, self.stream.split
        self.digest = self.stream.plan.digest
        self.epoch_size = self.stream.plan.epoch_size
        self.images = ImageSource(self.mixture, config.features.image_size, config.data.reading)
        self.workers = config.data.workers

    def batches(
        self, features: SampleSource, layout: BatchLayout, rank: int, starts: Sequence[int], pin: bool
    ) -> Iterator[Batch]:
        dataset = StreamDataset(features, self.mixture, self.stream.plan)
        return stream_batches(dataset, layout.batches(rank, starts), workers=self.workers, pin_memory=pin)


class SequentialData(TrainingData):
    """Tars without an index. Their first images stand for a dataset, for whitening and thresholds.

    Raises:
        UserError: the configuration asks for what needs an index, or there are too few images.
    """

    def __init__(self, config: RunConfig) -> None:
        _refuse_unused(config)
        data = config.data
        self.source = SequentialSource(
            data.manifests, config.features.image_size, data.holdout, config.train.seed, data.patience_s
        )
        found = survey(self.source)
        self.num_left_out = found.num_left_out
        self.mixture = _in_memory(self.source, [image.sample_id for image in found.images])
        held = np.array([self.source.is_held_out(image.sample_id) for image in found.images])
        self.split = TrainSplit(np.flatnonzero(~held), np.flatnonzero(held))
        self.images = EncodedImages(self.source, found.images)
        self.bad = found.bad
        self.digest = self.source.digest
        self.epoch_size = None
        self.workers = data.workers

    def batches(
        self, features: SampleSource, layout: BatchLayout, rank: int, starts: Sequence[int], pin: bool
    ) -> Iterator[Batch]:
        positions, start = layout.batches(rank, starts), next(iter(starts), 0)
        found = sequential_batches(
            self.source, positions, rank=rank, world=layout.world_size, start=start, workers=self.workers
        )
        return (batch.pin_memory() for batch in found) if pin else found


class EncodedImages(SampleSource):
    """A source of images whose encoded bytes are in memory."""

    def __init__(self, source: SequentialSource, images: Sequence[Encoded]) -> None:
        self.source = source
        self.encoded = images

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        return [self.encoded[index] for index in indices]

    def decode(self, fetched: list[Encoded]) -> list[Tensor | BadSample]:
        found = map(self.source.decoded, fetched)
        return [one if isinstance(one, BadSample) else torch.tensor(one.pixels).permute(2, 0, 1) for one in found]


def open_data(config: RunConfig, world: World | None = None) -> TrainingData:
    """Open the data of a run; in sequential mode the main process says what that means.

    Raises:
        UserError: the data cannot be read, or the configuration asks for what it does not have.
    """
    if config.data.mode == "indexed":
        return IndexedData(config)
    data = SequentialData(config)
    if world is not None and world.is_main:
        print(GUARANTEES, flush=True)
        if data.num_left_out:
            print(
                f"data.mode sequential: {data.num_left_out} of the first samples are anomalous, of another split or "
                "without an image; such samples do not train.",
                flush=True,
            )
    return data


def _refuse_unused(config: RunConfig) -> None:
    """Refuse what sequential reading would ignore."""
    unused = {
        "features.cache": config.features.cache,
        "model.use_labels": config.model.use_labels,
        "data.cache": config.data.cache,
        "data.weights": config.data.weights,
        "data.class_weights": config.data.class_weights,
        "data.temperature": config.data.temperature != 1.0,
    }
    for name, value in unused.items():
        if value:
            raise UserError(f"{name}: needs an index; unset it, or index the tars with `fmad data index`.")


def _in_memory(source: SequentialSource, sample_ids: list[str]) -> Mixture:
    """Make a mixture of one dataset without files, whose rows are the given images."""
    rows = [
        dict.fromkeys(INDEX_SCHEMA.names)
        | {"sample_id": one, "class_name": "all", "split": "train", "label": 0, "defect_type": "good", "shard": 0}
        for one in sample_ids
    ]
    manifest = Manifest(
        dataset=source.name,
        layout=FOREIGN,
        licence="unknown",
        source=", ".join(source.urls),
        rendition=Rendition(size=source.image_size, image_resample="", mask_resample=""),
        source_digest=source.digest,
        classes={"all": ClassCounts(train=len(sample_ids))},
        shards=[],
        index=IndexInfo(name="", num_bytes=0, num_samples=len(sample_ids), sha256=source.digest),
    ).sealed()
    dataset = Dataset(source.urls[0], manifest, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    return Mixture((dataset,), np.array([0, len(sample_ids)]))
