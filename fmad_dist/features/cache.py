"""Features of the training images, computed once and kept as float16 shards at any URL.

One folder per (manifest digest, backbone, weights, taps, grid, size). Inside it:
    cache.json                       written last; a folder without it is not a cache
    features-<first>-<sha>.f16       consecutive records [C, G, G], C-contiguous, little endian
    moments-<sha>.npy                float64 [N, 2, C], per-image channel sums for the whitening
Record n belongs to the n-th training row of the manifest's index. An image that was damaged has a record of zeros
without a digest and moments of NaN, so whoever asks for it learns that it is damaged.
"""

import hashlib
import io
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fmad_dist.errors import UserError, first_line
from fmad_dist.features.backbones import COMPUTATION, Backbone
from fmad_dist.features.whitening import image_moments
from fmad_dist.progress import Progress
from fmad_dist.storage import Store
from fmad_dist.storage.ranges import ByteRange
from fmad_dist.stream.dataset import Dataset
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample, SampleReader
from fmad_dist.stream.shards import ReadOptions
from fmad_dist.stream.sources import SampleSource
from fmad_dist.world import World

FORMAT = "fmad-features/2"
INFO_NAME = "cache.json"
SHARD_RECORDS = 2048
READ_CHUNK = 8  # multiple of nothing in particular; images per read-compute round


class CacheShard(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    first: int
    num_records: int
    sha256: str


class CacheInfo(BaseModel):
    """Content of `cache.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = FORMAT
    key: dict[str, Any]
    shape: tuple[int, int, int]
    num_records: int
    moments: str
    moments_sha256: str
    record_sha256: list[str]  # "" for an image that was damaged
    shards: list[CacheShard]


@dataclass(frozen=True)
class FeatureCache:
    """A complete cache of one dataset. Reads are verified record by record."""

    store: Store
    info: CacheInfo

    def is_damaged(self, number: int) -> bool:
        """Whether the image of the n-th training row could not be read when the cache was made."""
        return not self.info.record_sha256[number]

    def fetch(self, numbers: Sequence[int]) -> list[bytes]:
        """The bytes of records, not yet verified."""
        return self.store.read_ranges([self._range(number) for number in numbers])

    def decode(self, number: int, data: bytes, sample_id: str) -> Tensor | BadSample:
        """Features of the n-th training row, float16 [C, G, G], or why they cannot be used."""
        digest = self.info.record_sha256[number]
        url = self.store.url_of(self._range(number).name)
        if hashlib.sha256(data).hexdigest() != digest:
            fix = f"remove the folder {self.store.url} and the features are computed again"
            return BadSample(sample_id, url, f"has record {number}, which does not match its digest", fix)
        return torch.frombuffer(bytearray(data), dtype=torch.float16).view(self.info.shape)

    def _range(self, number: int) -> ByteRange:
        shard = self.info.shards[bisect_right(self.info.shards, number, key=lambda s: s.first) - 1]
        size = int(np.prod(self.info.shape)) * 2
        start = (number - shard.first) * size
        return ByteRange(shard.name, start, start + size)

    def moments(self) -> np.ndarray:
        """Per-image channel sums, float64 [N, 2, C]."""
        data = self.store.read(self.info.moments)
        if hashlib.sha256(data).hexdigest() != self.info.moments_sha256:
            raise UserError(f"{self.store.url_of(self.info.moments)}: changed after it was written; remove the cache.")
        return np.load(io.BytesIO(data))


class CachedSource(SampleSource):
    """`SampleSource` over the caches of a mixture: global index -> float16 [C, G, G]."""

    def __init__(self, mixture: Mixture, caches: dict[str, FeatureCache]) -> None:
        self.mixture = mixture
        self.caches = caches
        self.record_of_row = {
            dataset.name: {int(row): n for n, row in enumerate(dataset.rows("train"))} for dataset in mixture.datasets
        }

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """(global index, bytes) of each."""
        numbers: dict[str, dict[int, int]] = {}  # per dataset: place in the batch -> record
        for place, index in enumerate(indices):
            dataset, row = self.mixture.locate(int(index))
            numbers.setdefault(dataset.name, {})[place] = self.record_of_row[dataset.name][row]
        data: dict[int, bytes] = {}
        for name, wanted in numbers.items():
            data.update(zip(wanted, self.caches[name].fetch(list(wanted.values())), strict=True))
        return [(int(index), data[place]) for place, index in enumerate(indices)]

    def decode(self, fetched: list[tuple[int, bytes]]) -> list[Tensor | BadSample]:
        return [self._decoded(index, data) for index, data in fetched]

    def _decoded(self, index: int, data: bytes) -> Tensor | BadSample:
        dataset, row = self.mixture.locate(index)
        number, cache = self.record_of_row[dataset.name][row], self.caches[dataset.name]
        if cache.is_damaged(number):
            sample = dataset.sample(row)
            fix = f"restore the shard and remove the folder {cache.store.url}, whose features were computed without it"
            return BadSample(sample.sample_id, f"{dataset.url}/{sample.shard}", "was damaged", fix)
        return cache.decode(number, data, dataset.sample_ids[row])

    def damaged(self, indices: np.ndarray) -> list[BadSample]:
        """Why the records of these global indices cannot be used."""
        found = self.decode([(int(index), b"") for index in indices])
        return [item for item in found if isinstance(item, BadSample)]

    def moments(self, indices: np.ndarray) -> np.ndarray:
        """Rows [n, 2, C] of the given global indices, NaN for damaged images."""
        tables = {name: cache.moments() for name, cache in self.caches.items()}
        located = [self.mixture.locate(int(index)) for index in indices]
        return np.stack([tables[d.name][self.record_of_row[d.name][row]] for d, row in located])


def cache_key(dataset: Dataset, backbone: Backbone, weights_digest: str) -> dict[str, Any]:
    spec = asdict(backbone.spec)
    spec["taps"] = list(spec["taps"])
    computed = {"weights": weights_digest, "chunk": backbone.chunk, "computation": COMPUTATION}
    return {"manifest": dataset.manifest.digest, **computed, **spec}


def open_cache(url: str, dataset: Dataset, backbone: Backbone, weights_digest: str) -> FeatureCache | None:
    """The complete cache of `dataset` below `url`, or None.

    Raises:
        UserError: a cache is there but cannot be understood.
    """
    key = cache_key(dataset, backbone, weights_digest)
    store = _folder(url, dataset, key)
    if not store.exists(INFO_NAME):
        return None
    try:
        info = CacheInfo.model_validate_json(store.read(INFO_NAME))
    except ValidationError as error:
        raise UserError(f"{store.url_of(INFO_NAME)}: not readable ({first_line(error)}); remove the folder.") from None
    return FeatureCache(store, info) if info.key == key else None


def cached_source(url: str | None, mixture: Mixture, backbone: Backbone, weights_digest: str) -> CachedSource | None:
    """All caches of a mixture below `url`, or None if one is missing."""
    if url is None:
        return None
    found = {dataset.name: open_cache(url, dataset, backbone, weights_digest) for dataset in mixture.datasets}
    caches = {name: cache for name, cache in found.items() if cache is not None}
    return CachedSource(mixture, caches) if len(caches) == len(found) else None


def compute_shards(
    url: str,
    dataset: Dataset,
    backbone: Backbone,
    weights_digest: str,
    world: World,
    device: torch.device,
    options: ReadOptions | None = None,
) -> list[dict[str, Any]]:
    """Compute and write this rank's share of the records; returns what `seal_cache` needs to know about it."""
    store = _folder(url, dataset, cache_key(dataset, backbone, weights_digest))
    rows = dataset.rows("train")
    reader = SampleReader(dataset, backbone.spec.image_size, options)
    share = world.share(len(rows))
    parts: list[dict[str, Any]] = []
    with Progress(world.own(f"features of {dataset.name}"), total=len(share), shown=world.is_main) as progress:
        for first in range(share.start, share.stop, SHARD_RECORDS):
            stop = min(first + SHARD_RECORDS, share.stop)
            parts.append(_write_shard(store, reader, rows[first:stop], first, backbone, device, progress))
    return parts


def _write_shard(
    store: Store,
    reader: SampleReader,
    rows: np.ndarray,
    first: int,
    backbone: Backbone,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    records: list[bytes] = []
    digests: list[str] = []
    bad: list[BadSample] = []
    moments: list[np.ndarray] = []
    blank = np.zeros((backbone.spec.image_size, backbone.spec.image_size, 3), np.uint8)
    for start in range(0, len(rows), READ_CHUNK):
        found = reader.images([int(row) for row in rows[start : start + READ_CHUNK]])
        damaged = np.array([isinstance(image, BadSample) for image in found])
        bad += [image for image in found if isinstance(image, BadSample)]
        images = np.stack([blank if isinstance(image, BadSample) else image for image in found])
        features = backbone(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)).cpu()
        sums = image_moments(features)
        if damaged.any():
            features = features.masked_fill(torch.from_numpy(damaged)[:, None, None, None], 0)
            sums[damaged] = np.nan
        moments.append(sums)
        chunk = [feature.numpy().tobytes() for feature in features]
        records += chunk
        digests += ["" if lost else hashlib.sha256(r).hexdigest() for lost, r in zip(damaged, chunk, strict=True)]
        progress.advance(len(images))
    data = b"".join(records)
    digest = hashlib.sha256(data).hexdigest()
    name = f"features-{first:08d}-{digest[:12]}.f16"
    store.write(name, data)
    shard = CacheShard(name=name, first=first, num_records=len(rows), sha256=digest)
    return {
        "shard": shard.model_dump(),
        "record_sha256": digests,
        "bad": bad,
        "moments": np.concatenate(moments),
        "shape": tuple(features.shape[1:]),
    }


def seal_cache(
    url: str, dataset: Dataset, backbone: Backbone, weights_digest: str, parts: list[dict[str, Any]]
) -> FeatureCache:
    """Write `moments-*.npy` and then `cache.json` from the parts of all ranks; called by the main process alone."""
    key = cache_key(dataset, backbone, weights_digest)
    store = _folder(url, dataset, key)
    parts = sorted(parts, key=lambda part: part["shard"]["first"])
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([part["moments"] for part in parts]))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    info = CacheInfo(
        key=key,
        shape=parts[0]["shape"],
        num_records=sum(part["shard"]["num_records"] for part in parts),
        moments=f"moments-{digest[:12]}.npy",
        moments_sha256=digest,
        record_sha256=[sha for part in parts for sha in part["record_sha256"]],
        shards=[CacheShard(**part["shard"]) for part in parts],
    )
    store.write(info.moments, buffer.getvalue())
    store.write(INFO_NAME, info.model_dump_json().encode())
    return FeatureCache(store, info)


def _folder(url: str, dataset: Dataset, key: dict[str, Any]) -> Store:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Store(url).child(f"{dataset.name}-{digest[:16]}")
