"""Batches out of foreign tars without an index. Weaker than the indexed stream.

Tars are shuffled per pass, dealt to ranks and to their workers, and images go through webdataset's shuffle buffer. So
the order depends on the number of processes and workers, ranks pass over their own tars as often as they need, and a
resumed run begins a new pass.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from fmad_dist.base.errors import UserError
from fmad_dist.stream.batches import Batch, Failure, unless_failed, worker_loader
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sequential_source import Encoded, Image, SequentialSource

BUFFER = 1000  # encoded images of a reader's shuffle buffer


@dataclass(eq=False, kw_only=True)
class SequentialBatches(IterableDataset):
    """Endless micro batches of `size` images of one rank, dealt over its loader's workers."""

    source: SequentialSource
    tars: Sequence[str]
    rank: int
    world: int
    size: int
    start: int  # the stream position at which these batches begin: another start is another order

    def __iter__(self) -> Iterator[Batch | Failure]:
        try:
            yield from self._batches()
        except UserError as error:
            yield Failure(str(error))

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        bad: list[BadSample] = []
        images: list[Image] = []
        for found in self._endless(worker, num_workers):
            if isinstance(found, BadSample):
                bad.append(found)
                continue
            images.append(found)
            if len(images) == self.size:
                yield _batch(images, bad)
                images, bad = [], []

    def _endless(self, worker: int, num_workers: int) -> Iterator[Image | BadSample]:
        for number in itertools.count():
            some = False
            for found in self.one_pass(number, worker, num_workers):
                some = some or isinstance(found, Image)
                yield found
            if not some:
                raise UserError(f"{self.tars[0]}: a reader found no image to train on in its tars; use fewer workers.")

    def one_pass(self, number: int, worker: int, num_workers: int) -> Iterator[Image | BadSample]:
        """What one reader gets in a pass, without what is held out: all readers together get every image once."""
        from webdataset.filters import shuffle

        key = f"{self.source.seed}|{self.start}|{number}"
        order = list(self.tars)
        random.Random(key).shuffle(order)  # the same on all ranks
        own = order[self.rank :: self.world][worker::num_workers]
        buffered = shuffle(BUFFER, rng=random.Random(f"{key}|{self.rank}|{worker}"))
        for found in buffered(filter(self._trains, map(self.source.chosen, self.source.samples(own)))):
            yield found if isinstance(found, BadSample) else self.source.decoded(found)

    def _trains(self, found: Encoded | BadSample | None) -> bool:
        if isinstance(found, Encoded):
            return not self.source.is_held_out(found.sample_id)
        return isinstance(found, BadSample)


def _batch(images: list[Image], bad: list[BadSample]) -> Batch:
    pixels = np.stack([image.pixels for image in images]).transpose(0, 3, 1, 2)
    return Batch(
        data=torch.from_numpy(np.ascontiguousarray(pixels)),
        labels=torch.zeros(len(images), dtype=torch.int64),
        positions=torch.zeros(len(images), dtype=torch.int64),
        sample_ids=tuple(image.sample_id for image in images),
        bad=tuple(bad),
    )


def sequential_batches(
    source: SequentialSource, positions: Iterator[np.ndarray], *, rank: int, world: int, start: int, workers: int
) -> Iterator[Batch]:
    """One batch for each array of stream positions, which key its noise.

    Raises:
        UserError: there are fewer tars than readers, or one holds nothing to train on.
    """
    tars = source.tars()
    readers = world * max(workers, 1)
    if len(tars) < readers:
        raise UserError(
            f"data.mode sequential: {len(tars)} tars for {readers} readers (processes x data.workers); lower "
            "data.workers, or index the tars with `fmad data index`."
        )
    first = next(positions, None)
    if first is None:
        return
    batches = SequentialBatches(source=source, tars=tars, rank=rank, world=world, size=len(first), start=start)
    loader = worker_loader(batches, workers)
    for chosen, batch in zip(itertools.chain([first], positions), unless_failed(loader), strict=False):
        yield replace(batch, positions=torch.from_numpy(chosen))
