"""Foreign tars without an index, read in order through webdataset's own pipeline. Weaker than the indexed stream.

Shards are shuffled per pass, dealt to ranks and to their workers, and samples go through a shuffle buffer. So the
order depends on the number of processes and workers, ranks pass over their own shards as often as they need, and a
resumed run begins a new pass. Held-out samples are known by their key, so that no pass trains on them.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fmad_dist.errors import UserError, first_line
from fmad_dist.images import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.storage import Store
from fmad_dist.stream.batches import Batch, Failure
from fmad_dist.stream.reader import BadSample

BUFFER = 1000  # samples of the shuffle buffer
SURVEY = 512  # samples that whitening and thresholds are taken from
_RESTORE = "replace the tar or index it with `fmad data index`"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded training image."""

    sample_id: str
    pixels: np.ndarray  # uint8 [S, S, 3]


@dataclass(frozen=True)
class SequentialSource:
    """Folders of tars, or patterns like `s3://b/x/train-{000000..000017}.tar`, as one stream of training images."""

    urls: tuple[str, ...]
    image_size: int
    holdout: float
    seed: int
    patience_s: float

    @property
    def digest(self) -> str:
        """Names this stream for checkpoints; the content of the tars is not part of it."""
        facts = ["sequential/1", self.urls, self.image_size, self.holdout, self.seed]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The dataset's name: the last folder of the first URL."""
        folder = self.urls[0].rstrip("/")
        folder = folder.rpartition("/")[0] if folder.endswith(".tar") else folder
        return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.rpartition("/")[2]) or "tars"

    def tars(self) -> list[str]:
        """All tar URLs, in the order of `urls`.

        Raises:
            UserError: there are none.
        """
        found = [tar for url in self.urls for tar in self._tars_of(url)]
        if not found:
            raise UserError(f"data.manifests: no .tar files at {', '.join(self.urls)}; in sequential mode give tars.")
        return found

    def _tars_of(self, url: str) -> list[str]:
        braces = _BRACES.search(url)
        if braces:
            first, last = braces[1], braces[2]
            numbers = range(int(first), int(last) + 1)
            return [url[: braces.start()] + f"{n:0{len(first)}d}" + url[braces.end() :] for n in numbers]
        if url.endswith(".tar"):
            return [url]
        store = Store(url, self.patience_s)
        return [store.url_of(name) for name in store.list() if name.endswith(".tar")]

    def is_held_out(self, sample_id: str) -> bool:
        """By its id alone, so the same in every pass and process."""
        return int(hashlib.sha256(sample_id.encode()).hexdigest()[:12], 16) < self.holdout * 16**12

    def samples(self, tars: Iterable[str]) -> "Iterator[dict[str, Any] | BadSample]":
        """The undecoded samples of some tars, in their order; a tar that is cut is told as one damaged sample."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        problems: dict[str, BadSample] = {}
        reading = ""

        def opened() -> Iterator[dict[str, Any]]:
            nonlocal reading
            for reading in tars:
                folder, _, name = reading.rpartition("/")
                yield {"url": reading, "stream": Store(folder, self.patience_s).open(name)}

        def broken(error: Exception) -> bool:
            """What follows in the tar is lost; webdataset goes on with the next one."""
            name = reading.rpartition("/")[2]
            reason = f"cannot be read to its end ({first_line(error)})"
            problems[reading] = BadSample(f"{self.name}/all/train/{name}", reading, reason, _RESTORE)
            return True

        for sample in group_by_keys(tar_file_expander(opened(), handler=broken), handler=broken):
            yield from problems.values()
            problems.clear()
            yield sample
        yield from problems.values()

    def decoded(self, sample: "dict[str, Any] | BadSample") -> "Image | BadSample | None":
        """None for what is no training image: without an image, or said to be anomalous or of another split."""
        if isinstance(sample, BadSample):
            return sample
        extension = next((name for name in sample if f".{name.lower()}" in IMAGE_SUFFIXES), None)
        facts = _facts(sample.get("json"))
        anomalous = str(facts.get("label", 0)).lower() in ("1", "anomaly", "anomalous")
        if extension is None or anomalous or facts.get("split", "train") != "train":
            return None
        sample_id = f"{self.name}/all/train/{sample['__key__']}"
        try:
            image = square_rgb(open_image(sample[extension], sample_id), self.image_size, sample_id)
        except UserError as error:
            return BadSample(sample_id, str(sample["__url__"]), f"is no readable image ({error})", _RESTORE)
        return Image(sample_id, np.asarray(image))


def survey(source: SequentialSource) -> tuple[list[Image], list[BadSample]]:
    """The first `SURVEY` images and the damaged ones met on the way, the same for every rank.

    Raises:
        UserError: there are not two images, or all of them are held out, or none.
    """
    images: list[Image] = []
    bad: list[BadSample] = []
    for found in map(source.decoded, source.samples(source.tars())):
        if isinstance(found, BadSample):
            bad.append(found)
        elif found is not None:
            images.append(found)
        if len(images) == SURVEY:
            break
    held = sum(source.is_held_out(image.sample_id) for image in images)
    if not 0 < held < len(images):
        raise UserError(
            f"data.manifests: of the first {len(images)} images of {source.urls[0]} {held} are held out by "
            f"data.holdout {source.holdout}; change it or give more images, so that some are and some train."
        )
    return images, bad


class SequentialBatches(IterableDataset):
    """Endless micro batches of `size` images of one rank, dealt over its loader's workers."""

    def __init__(
        self, source: SequentialSource, tars: Sequence[str], rank: int, world: int, size: int, start: int
    ) -> None:
        self.source = source
        self.tars = tars
        self.rank = rank
        self.world = world
        self.size = size
        self.start = start  # the step of the run at which these batches begin: another start is another order

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
        for found in map(self.source.decoded, buffered(self.source.samples(own))):
            if isinstance(found, BadSample) or (found and not self.source.is_held_out(found.sample_id)):
                yield found


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
    loader: DataLoader = DataLoader(
        SequentialBatches(source, tars, rank, world, len(first), start),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    for chosen, item in zip(itertools.chain([first], positions), loader, strict=False):
        if isinstance(item, Failure):
            raise UserError(item.message)
        yield replace(item, positions=torch.from_numpy(chosen))


def _facts(data: bytes | None) -> dict[str, Any]:
    try:
        facts = json.loads(data) if data else {}
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
