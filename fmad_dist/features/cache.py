"""Features of the training images, computed once and kept as float16 shards at any URL.

One folder per (manifest digest, backbone, weights, taps, grid, size). Inside it:
    cache.json                       written last; a folder without it is not a cache
    features-<first>-<sha>.f16       consecutive records [C, G, G], C-contiguous, little endian
    moments-<sha>.npy                float64 [N, 2, C], per-image channel sums for the whitening
Record n belongs to the n-th training row of the manifest's index.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fmad_dist.errors import UserError, first_line
from fmad_dist.features.backbones import Backbone
from fmad_dist.features.whitening import image_moments
from fmad_dist.progress import Progress
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import Dataset
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import SampleReader
from fmad_dist.world import World

FORMAT = "fmad-features/1"
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
    record_sha256: list[str]
    shards: list[CacheShard]


@dataclass(frozen=True)
class FeatureCache:
    """A complete cache of one dataset. Reads are verified record by record."""

    store: Store
    info: CacheInfo

    def record(self, number: int) -> Tensor:
        """Features of the n-th training row, float16 [C, G, G].

        Raises:
            UserError: the bytes do not match their digest.
        """
        shard = next(s for s in reversed(self.info.shards) if s.first <= number)
        size = int(np.prod(self.info.shape)) * 2
        start = (number - shard.first) * size
        data = self.store.read_range(shard.name, start, start + size)
        if hashlib.sha256(data).hexdigest() != self.info.record_sha256[number]:
            raise UserError(
                f"{self.store.url_of(shard.name)}: record {number} does not match its digest; remove the folder "
                f"{self.store.url} and the features are computed again."
            )
        return torch.frombuffer(bytearray(data), dtype=torch.float16).view(self.info.shape)

    def moments(self) -> np.ndarray:
        """Per-image channel sums, float64 [N, 2, C]."""
        data = self.store.read(self.info.moments)
        if hashlib.sha256(data).hexdigest() != self.info.moments_sha256:
            raise UserError(f"{self.store.url_of(self.info.moments)}: changed after it was written; remove the cache.")
        return np.load(io.BytesIO(data))


class CachedSource:
    """`SampleSource` over the caches of a mixture: global index -> float16 [C, G, G]."""

    def __init__(self, mixture: Mixture, caches: dict[str, FeatureCache]) -> None:
        self.mixture = mixture
        self.caches = caches
        self.record_of_row = {
            dataset.name: {int(row): n for n, row in enumerate(dataset.rows("train"))} for dataset in mixture.datasets
        }

    def read(self, index: int) -> Tensor:
        dataset, row = self.mixture.locate(index)
        return self.caches[dataset.name].record(self.record_of_row[dataset.name][row])

    def moments(self, indices: np.ndarray) -> np.ndarray:
        """Rows [n, 2, C] of the given global indices."""
        tables = {name: cache.moments() for name, cache in self.caches.items()}
        located = [self.mixture.locate(int(index)) for index in indices]
        return np.stack([tables[d.name][self.record_of_row[d.name][row]] for d, row in located])


def cache_key(dataset: Dataset, backbone: Backbone, weights_digest: str) -> dict[str, Any]:
    spec = asdict(backbone.spec)
    spec["taps"] = list(spec["taps"])
    return {"manifest": dataset.manifest.digest, "weights": weights_digest, "chunk": backbone.chunk, **spec}


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


def compute_shards(
    url: str, dataset: Dataset, backbone: Backbone, weights_digest: str, world: World, device: torch.device
) -> list[dict[str, Any]]:
    """Compute and write this rank's share of the records; returns what `seal_cache` needs to know about it."""
    store = _folder(url, dataset, cache_key(dataset, backbone, weights_digest))
    rows = dataset.rows("train")
    reader = SampleReader(dataset)
    share = world.share(len(rows))
    parts: list[dict[str, Any]] = []
    with Progress(f"features of {dataset.name}", total=len(share), shown=world.is_main) as progress:
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
    moments: list[np.ndarray] = []
    for start in range(0, len(rows), READ_CHUNK):
        images = np.stack([reader.image(int(row)) for row in rows[start : start + READ_CHUNK]])
        features = backbone(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)).cpu()
        moments.append(image_moments(features))
        records += [feature.numpy().tobytes() for feature in features]
        progress.advance(len(images))
    data = b"".join(records)
    digest = hashlib.sha256(data).hexdigest()
    name = f"features-{first:08d}-{digest[:12]}.f16"
    store.write(name, data)
    shard = CacheShard(name=name, first=first, num_records=len(rows), sha256=digest)
    return {
        "shard": shard.model_dump(),
        "record_sha256": [hashlib.sha256(record).hexdigest() for record in records],
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
