"""Features of the training images, computed once and kept as float16 shards at any URL.

One folder per (manifest digest, backbone, weights, taps, grid, size). Inside it:
    cache.json                       written last; a folder without it is not a cache
    features-<first>-<sha>.f16       consecutive records: [C, G, G], C-contiguous, little endian, then the SHA-256 of
                                     the record's number and those bytes
    moments-<first>-<sha>.npy        float64 [n, 2, C], channel sums of the same images for the whitening
Record n belongs to the n-th training row of the manifest's index. A damaged image has a record of zeros, its digest
too, and moments of NaN; reading it returns a `BadSample`. What is known of single images is in these files alone, so no
process holds anything of all of them: a cache of ten million images opens in a megabyte.
"""

import hashlib
import io
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.world import World
from fmad_dist.features.backbones import COMPUTATION, Backbone
from fmad_dist.features.whitening import image_moments
from fmad_dist.storage import Store
from fmad_dist.storage.ranges import ByteRange
from fmad_dist.stream.dataset import Dataset
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample

FORMAT = "fmad-features/3"
INFO_NAME = "cache.json"
SHARD_RECORDS = 2048
DIGEST_BYTES = 32
READ_TOGETHER = 8  # images, at the least; whatever the number, features are the same


class CacheShard(BaseModel):
    """A file of consecutive records, from number `first`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    first: int
    num_records: int
    sha256: str
    moments: str  # name of the file
    moments_sha256: str


class CacheInfo(BaseModel):
    """Content of `cache.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = FORMAT
    key: dict[str, Any]
    shape: tuple[int, int, int]
    num_records: int
    shards: list[CacheShard]


@dataclass(frozen=True)
class FeatureCache:
    """A complete cache of one dataset. Reads are verified record by record."""

    store: Store
    info: CacheInfo

    def fetch(self, numbers: Sequence[int]) -> list[bytes]:
        """The bytes of records, not yet verified."""
        return self.store.read_ranges([self._range(number) for number in numbers])

    def decode(self, number: int, data: bytes, sample_id: str) -> Tensor | BadSample:
        """Features of the n-th training row, float16 [C, G, G], or why they cannot be used."""
        url = self.store.url_of(self._range(number).name)
        content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if not any(digest) and len(data) == self._record_bytes:
            fix = f"restore the shard and remove the folder {self.store.url}, whose features were computed without it"
            return BadSample(sample_id, url, "was damaged", fix)
        if _digest(number, content) != digest:
            fix = f"remove the folder {self.store.url} and the features are computed again"
            return BadSample(sample_id, url, f"has record {number}, which does not match its digest", fix)
        return torch.frombuffer(bytearray(content), dtype=torch.float16).view(self.info.shape)

    def moments(self, numbers: np.ndarray) -> np.ndarray:
        """Channel sums of the images of ascending records, float64 [n, 2, C]; NaN for damaged ones.

        Raises:
            UserError: a file is missing or was changed.
        """
        found = np.empty((len(numbers), 2, self.info.shape[0]))
        shards = np.searchsorted([shard.first for shard in self.info.shards], numbers, side="right") - 1
        for place in np.unique(shards).tolist():
            shard, own = self.info.shards[place], shards == place
            data = self.store.read(shard.moments)
            if hashlib.sha256(data).hexdigest() != shard.moments_sha256:
                where = self.store.url_of(shard.moments)
                raise UserError(f"{where}: changed after it was written; remove the cache.")
            found[own] = np.load(io.BytesIO(data))[numbers[own] - shard.first]
        return found

    @property
    def _record_bytes(self) -> int:
        return math.prod(self.info.shape) * 2 + DIGEST_BYTES

    def _range(self, number: int) -> ByteRange:
        shard = self.info.shards[bisect_right(self.info.shards, number, key=lambda s: s.first) - 1]
        start = (number - shard.first) * self._record_bytes
        return ByteRange(shard.name, start, start + self._record_bytes)


def _digest(number: int, content: bytes) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little") + content).digest()


class CachedSource(SampleSource):
    """`SampleSource` over the caches of a mixture: row -> float16 [C, G, G]."""

    def __init__(self, mixture: Mixture, caches: dict[str, FeatureCache]) -> None:
        self.mixture = mixture
        self.caches = caches
        self._indices: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedSource, (self.mixture, self.caches)

    def fetch(self, rows: Sequence[int]) -> list[tuple[int, bytes]]:
        """(row, bytes) of each."""
        wanted: dict[str, dict[int, int]] = {}  # per dataset: row -> record
        for row in rows:
            name, number = self._record(row)
            wanted.setdefault(name, {})[int(row)] = number
        data: dict[int, bytes] = {}
        for name, records in wanted.items():
            data.update(zip(records, self.caches[name].fetch(list(records.values())), strict=True))
        return [(int(row), data[int(row)]) for row in rows]

    def decode(self, fetched: list[tuple[int, bytes]]) -> list[Tensor | BadSample]:
        return [self._decoded(row, data) for row, data in fetched]

    def _decoded(self, row: int, data: bytes) -> Tensor | BadSample:
        name, number = self._record(row)
        dataset, index = self.mixture.locate(row)
        return self.caches[name].decode(number, data, dataset.sample_id(index))

    def damaged(self, rows: np.ndarray) -> list[BadSample]:
        """Why the records of these rows cannot be used."""
        found = self.decode(self.fetch(rows.tolist()))
        return [item for item in found if isinstance(item, BadSample)]

    def moments(self, rows: np.ndarray) -> np.ndarray:
        """Channel sums [n, 2, C] of ascending rows, NaN for damaged images."""
        parts = []
        for dataset, start, stop in zip(
            self.mixture.datasets, self.mixture.starts[:-1], self.mixture.starts[1:], strict=True
        ):
            own = rows[(rows >= start) & (rows < stop)] - start
            if len(own):
                parts.append(self.caches[dataset.name].moments(np.searchsorted(self._indices_of(dataset), own)))
        return np.concatenate(parts)

    def _record(self, row: int) -> tuple[str, int]:
        """The dataset and the number of the record in its cache."""
        dataset, index = self.mixture.locate(int(row))
        indices = self._indices_of(dataset)
        number = int(np.searchsorted(indices, index))
        assert indices[number] == index, "features of training images alone are cached"
        return dataset.name, number

    def _indices_of(self, dataset: Dataset) -> np.ndarray:
        """The images whose features are cached, in the order of the records."""
        if dataset.name not in self._indices:
            self._indices[dataset.name] = dataset.indices("train")
        return self._indices[dataset.name]


def cached_source(url: str | None, mixture: Mixture, backbone: Backbone, weights_digest: str) -> CachedSource | None:
    """All caches of a mixture below `url`, or None if one is missing."""
    if url is None:
        return None
    found = {one.name: CacheFolder.of(url, one, backbone, weights_digest).open() for one in mixture.datasets}
    caches = {name: cache for name, cache in found.items() if cache is not None}
    return CachedSource(mixture, caches) if len(caches) == len(found) else None


@dataclass(frozen=True, slots=True)
class ComputedShard:
    """A shard that a rank has written, with the images that were damaged."""

    shard: CacheShard
    bad: list[BadSample]


@dataclass(frozen=True)
class CacheFolder:
    """The folder of one dataset's features, whether it is complete or not; its name is a hash of `key`, everything that
    the features depend on."""

    store: Store
    key: dict[str, Any]
    dataset: str
    shape: tuple[int, int, int]  # of a record

    @classmethod
    def of(cls, url: str, dataset: Dataset, backbone: Backbone, weights_digest: str) -> "CacheFolder":
        """The folder below `url`."""
        spec = asdict(backbone.spec) | {"taps": list(backbone.spec.taps)}
        computed = {"weights": weights_digest, "chunk": backbone.chunk, "computation": COMPUTATION}
        key = {"format": FORMAT, "manifest": dataset.manifest.digest, **computed, **spec}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(Store(url).child(f"{dataset.name}-{digest[:16]}"), key, dataset.name, backbone.shape)

    def open(self) -> FeatureCache | None:
        """The complete cache, or None.

        Raises:
            UserError: a cache is there but cannot be understood.
        """
        if not self.store.exists(INFO_NAME):
            return None
        try:
            info = CacheInfo.model_validate_json(self.store.read(INFO_NAME))
        except ValidationError as error:
            url, problem = self.store.url_of(INFO_NAME), first_line(error)
            raise UserError(f"{url}: not readable ({problem}); remove the folder.") from None
        return FeatureCache(self.store, info) if info.key == self.key else None

    def compute(self, images: SampleSource, rows: np.ndarray, backbone: Backbone, world: World) -> list[ComputedShard]:
        """Compute and write this rank's share of the records, which are of the images at `rows` of the mixture."""
        share = world.share(len(rows))
        found = []
        with Progress(world.own(f"features of {self.dataset}"), total=len(share), shown=world.is_main) as progress:
            for first in range(share.start, share.stop, SHARD_RECORDS):
                own = rows[first : min(first + SHARD_RECORDS, share.stop)]
                found.append(self._compute_shard(images, own, backbone, first, progress))
        return found

    def _compute_shard(
        self, images: SampleSource, rows: np.ndarray, backbone: Backbone, first: int, progress: Progress
    ) -> ComputedShard:
        data = bytearray()
        moments: list[np.ndarray] = []
        bad: list[BadSample] = []
        for part in extract(images, rows, backbone):
            for lost, features in zip(np.isnan(part.moments).any(axis=(1, 2)), part.features, strict=True):
                content = features.numpy().tobytes()
                number = first + len(data) // (len(content) + DIGEST_BYTES)
                data += content + (bytes(DIGEST_BYTES) if lost else _digest(number, content))
            moments.append(part.moments)
            bad += part.bad
            progress.advance(len(part.moments))
        digest = hashlib.sha256(data).hexdigest()
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(moments))
        sums = hashlib.sha256(buffer.getvalue()).hexdigest()
        shard = CacheShard(
            name=f"features-{first:08d}-{digest[:12]}.f16",
            first=first,
            num_records=len(rows),
            sha256=digest,
            moments=f"moments-{first:08d}-{sums[:12]}.npy",
            moments_sha256=sums,
        )
        self.store.write(shard.name, bytes(data))
        self.store.write(shard.moments, buffer.getvalue())
        return ComputedShard(shard, bad)

    def seal(self, shards: Sequence[CacheShard]) -> FeatureCache:
        """Write `cache.json`, from the shards of all ranks; the main process alone calls."""
        info = CacheInfo(
            key=self.key,
            shape=self.shape,
            num_records=sum(shard.num_records for shard in shards),
            shards=sorted(shards, key=lambda shard: shard.first),
        )
        self.store.write(INFO_NAME, info.model_dump_json().encode())
        return FeatureCache(self.store, info)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Features float16 [n, C, G, G] of some images, on the CPU, and their channel sums float64 [n, 2, C]; zeros and NaN
    for the damaged images, which `bad` tells."""

    features: Tensor
    moments: np.ndarray
    bad: list[BadSample]


def extract(images: SampleSource, rows: np.ndarray, backbone: Backbone) -> Iterator[Extracted]:
    """Features of the images of these rows, in that order, some at a time; for a cache, or for the whitening alone."""
    size = max(READ_TOGETHER, backbone.chunk)
    for start in range(0, len(rows), size):
        found = images.decode(images.fetch(rows[start : start + size].tolist()))
        features = torch.zeros(len(found), *backbone.shape, dtype=torch.float16)
        moments = np.full((len(found), 2, backbone.num_channels), np.nan)
        readable = {n: image for n, image in enumerate(found) if not isinstance(image, BadSample)}
        if readable:
            numbers = list(readable)
            features[numbers] = backbone(images.stack(list(readable.values())).to(backbone.mean.device)).cpu()
            moments[numbers] = image_moments(features[numbers])
        yield Extracted(features, moments, [image for image in found if isinstance(image, BadSample)])
