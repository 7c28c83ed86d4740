"""From stream positions to batches of tensors, read ahead by worker processes.

Workers are started with forkserver, never fork: s3fs hangs in forked children, and a forked torch may too.
A worker cannot raise a clean error through the loader, so it returns a `Failure` and the consumer raises.
"""

import multiprocessing
import pickle
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmad_dist.base.errors import UserError
from fmad_dist.base.process import end_with_starter
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import StreamPlan
from fmad_dist.stream.reader import BadSample

FIRST_BATCHES = 2  # read by the training process itself when it starts
READ_AHEAD = 2  # batches per reader whose bytes travel while another is decoded
SUBSTITUTES = 64  # positions that are tried instead of a damaged sample's


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one forward pass."""

    data: Tensor  # uint8 images [B, 3, H, W], or float16 features [B, C, G, G] out of a cache
    labels: Tensor  # int64 [B], class numbers of the mixture
    positions: Tensor  # int64 [B], stream positions: the key of each sample's noise and time
    sample_ids: tuple[str, ...]
    bad: tuple[BadSample, ...] = ()  # damaged samples that others stand in for

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the loader looks for this method and leaves other objects pageable."""
        data, labels, positions = (tensor.pin_memory() for tensor in (self.data, self.labels, self.positions))
        return replace(self, data=data, labels=labels, positions=positions)


@dataclass(frozen=True, slots=True)
class Request:
    """One batch, as a loader asks a reader for it."""

    positions: list[int]
    ahead: list[list[int]]  # positions of the batches that the same reader will be asked for next


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a reader process on its way to the consumer."""

    message: str


class PickledDataset(Dataset):
    """A dataset on its way to worker processes.

    It is pickled now and not when they start, so whoever goes on using it cannot change it meanwhile.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.data = pickle.dumps(dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.data,)


class StreamDataset(Dataset):
    """Batches addressed by lists of stream positions, with the positions that this reader will be asked for next.

    For a damaged sample stands the sample of the next position that can be read, so batches keep their size and no
    sample depends on the number of processes; the batch tells what was damaged.
    """

    def __init__(self, source: SampleSource, mixture: Mixture, plan: StreamPlan) -> None:
        self.source = source
        self.mixture = mixture
        self.plan = plan
        self._ahead: dict[tuple[int, ...], Future[Any]] = {}
        self._reader: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": {}, "_reader": None}

    def __getitem__(self, request: Request) -> Batch | Failure:
        try:
            return self.batch(np.asarray(request.positions, dtype=np.int64), request.ahead)
        except UserError as error:
            return Failure(str(error))

    def batch(self, positions: np.ndarray, ahead: Sequence[Sequence[int]] = ()) -> Batch:
        """The batch of `positions`; meanwhile the bytes of the positions in `ahead` are fetched.

        Raises:
            UserError: a sample cannot be read, and none of those that follow it.
        """
        rows = self.plan.at(positions)
        waiting = self._ahead.pop(tuple(positions.tolist()), None)
        self._fetch_ahead(ahead)
        found = self.source.decode(waiting.result() if waiting else self.source.fetch(rows.tolist()))
        tensors: list[Tensor] = []
        bad: list[BadSample] = []
        for slot, item in enumerate(found):
            if isinstance(item, BadSample):
                bad.append(item)
                rows[slot], item = self._substitute(int(positions[slot]), item)
            tensors.append(item)
        return Batch(
            data=self.source.stack(tensors),
            labels=torch.from_numpy(self.mixture.class_numbers[rows]),
            positions=torch.from_numpy(positions),
            sample_ids=tuple(self.mixture.sample_id(int(row)) for row in rows),
            bad=tuple(bad),
        )

    def _fetch_ahead(self, ahead: Sequence[Sequence[int]]) -> None:
        if not ahead:
            return
        if self._reader is None:  # as many threads as batches are fetched ahead
            self._reader = ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read-ahead")
        for positions in ahead:
            if tuple(positions) not in self._ahead:
                rows = self.plan.at(np.asarray(positions, dtype=np.int64)).tolist()
                self._ahead[tuple(positions)] = self._reader.submit(self.source.fetch, rows)

    def _substitute(self, position: int, bad: BadSample) -> tuple[int, Tensor]:
        """The row and the tensor of the next position that can be read."""
        for row in self.plan.at(position + 1 + np.arange(SUBSTITUTES)).tolist():
            item = self.source.decode(self.source.fetch([row]))[0]
            if not isinstance(item, BadSample):
                return row, item
        raise UserError(f"{bad} (The {SUBSTITUTES} samples that follow it are damaged too.)")


def stream_batches(
    dataset: StreamDataset, positions: Iterator[np.ndarray], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches for each array of positions, in order.

    Raises:
        UserError: a sample cannot be read; the sentence names its shard.
    """
    if workers:  # import torch once in the server, not once in every worker
        multiprocessing.set_forkserver_preload([__name__])
    requests = _requests(positions, max(workers, 1))
    first = list(islice(requests, FIRST_BATCHES if workers else 0))
    sent = PickledDataset(dataset) if workers else dataset
    loader = worker_loader(sent, workers, sampler=requests, pin_memory=pin_memory)
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(iter, loader) if workers else None
        for request in first:  # read here, while the workers are still importing torch
            batch = dataset.batch(np.asarray(request.positions, dtype=np.int64))
            yield batch.pin_memory() if pin_memory else batch
        items = iter(loader) if started is None else started.result()
    if isinstance(sent, PickledDataset):
        sent.data = b""  # every worker has it
    yield from unless_failed(items)


def worker_loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    """A loader whose batches the dataset makes itself, in forkserver processes (0 workers: in this one)."""
    if workers:
        options |= {"multiprocessing_context": "forkserver", "worker_init_fn": end_with_starter, "prefetch_factor": 4}
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def unless_failed(items: Iterable[Any]) -> Iterator[Any]:
    """What worker processes made; a `Failure` of one is raised (UserError)."""
    for item in items:
        if isinstance(item, Failure):
            raise UserError(item.message)
        yield item


def _requests(positions: Iterator[np.ndarray], workers: int) -> Iterator[Request]:
    """Each batch with the `READ_AHEAD` batches that the same worker gets after it: batches are dealt in turn."""
    window: deque[list[int]] = deque()
    for batch in positions:
        window.append(batch.tolist())
        if len(window) > READ_AHEAD * workers:
            yield Request(window.popleft(), list(islice(window, workers - 1, None, workers)))
    while window:
        yield Request(window.popleft(), list(islice(window, workers - 1, None, workers)))
