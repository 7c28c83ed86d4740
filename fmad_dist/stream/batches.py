"""From stream positions to batches of tensors, read ahead by worker processes.

Workers are started with forkserver, never fork: s3fs hangs in forked children, and a forked torch may too.
A worker cannot raise a clean error through the loader, so it returns a `Failure` and the consumer raises.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmad_dist.errors import UserError
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import StreamPlan
from fmad_dist.stream.reader import SampleReader


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one forward pass."""

    data: Tensor  # uint8 images [B, 3, H, W], or float16 features [B, C, G, G] out of a cache
    labels: Tensor  # int64 [B], position in the mixture's class names
    positions: Tensor  # int64 [B], stream positions: the key of each sample's noise and time
    sample_ids: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the loader looks for this method and leaves other objects pageable."""
        return Batch(self.data.pin_memory(), self.labels.pin_memory(), self.positions.pin_memory(), self.sample_ids)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a reader process on its way to the consumer."""

    message: str


class SampleSource(Protocol):
    """Where the tensors of global indices come from: images, or cached features."""

    def read(self, index: int) -> Tensor: ...


class ImageSource:
    """Stored images of a mixture, uint8 [3, H, W] each.

    Raises:
        UserError: a stored image is not `image_size` pixels square.
    """

    def __init__(self, mixture: Mixture, image_size: int) -> None:
        for dataset in mixture.datasets:
            if dataset.manifest.rendition.size != image_size:
                raise UserError(
                    f"features.image_size is {image_size} but {dataset.url} stores {dataset.manifest.rendition.size} "
                    "px images; set it to that, or convert the dataset again with --size."
                )
        self.mixture = mixture
        self.readers = {dataset.name: SampleReader(dataset) for dataset in mixture.datasets}

    def read(self, index: int) -> Tensor:
        dataset, row = self.mixture.locate(index)
        pixels = self.readers[dataset.name].image(row)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class StreamDataset(Dataset):
    """Batches addressed by lists of stream positions."""

    def __init__(self, source: SampleSource, mixture: Mixture, plan: StreamPlan) -> None:
        self.source = source
        self.mixture = mixture
        self.plan = plan

    def __getitem__(self, positions: Sequence[int]) -> Batch | Failure:
        try:
            return self.batch(np.asarray(positions, dtype=np.int64))
        except UserError as error:
            return Failure(str(error))

    def batch(self, positions: np.ndarray) -> Batch:
        indices = self.plan.at(positions)
        return Batch(
            data=torch.stack([self.source.read(int(index)) for index in indices]),
            labels=torch.from_numpy(self.mixture.class_numbers[indices]),
            positions=torch.from_numpy(positions),
            sample_ids=tuple(self.mixture.sample_id(int(index)) for index in indices),
        )


def stream_batches(
    dataset: StreamDataset, positions: Iterator[np.ndarray], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches for each array of positions, in order.

    Raises:
        UserError: a sample cannot be read; the sentence names its shard.
    """
    if workers:  # import torch once in the server, not once in every worker
        multiprocessing.set_forkserver_preload([__name__])
    loader: DataLoader = DataLoader(
        dataset,
        sampler=(batch.tolist() for batch in positions),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
    )
    for item in loader:
        if isinstance(item, Failure):
            raise UserError(item.message)
        yield item
