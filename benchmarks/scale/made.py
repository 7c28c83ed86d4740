"""Datasets and evaluation states of made-up sizes: rows, names and digests as a conversion writes them, no pixels."""

import copy
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fmad_dist.config.protocol import Protocol
from fmad_dist.features.cache import SHARD_RECORDS, CacheFolder, CacheShard
from fmad_dist.metrics.panels import Panel, PanelBoard
from fmad_dist.metrics.state import ClassState, EvaluationState, ScoredImage
from fmad_dist.metrics.wire import encode_state
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import INDEX_SCHEMA
from fmad_dist.stream.manifest import MANIFEST_NAME, ClassCounts, IndexInfo, Manifest, Rendition, ShardInfo

ROWS_AT_ONCE = 100_000
SHARD_SAMPLES = 5_000
CACHED = (192, 16, 16)  # features of an image
DEFECTS = ("crack", "hole", "scratch")


def make_dataset(folder: Path, num_images: int, num_classes: int) -> None:
    """A dataset `made` of training normals with a manifest and an index, and no shards."""
    folder.mkdir(parents=True)
    name = folder / "index.parquet"
    with pq.ParquetWriter(name, INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, num_images, ROWS_AT_ONCE):
            writer.write_table(_rows(start, min(start + ROWS_AT_ONCE, num_images), num_images, num_classes))
    with name.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    counts = np.bincount(_class_of(np.arange(num_images), num_images, num_classes), minlength=num_classes)
    shards = [
        ShardInfo(
            name=f"shards/train-{n:05d}.tar", split="train", num_bytes=10**9, num_samples=SHARD_SAMPLES, sha256=""
        )
        for n in range(-(-num_images // SHARD_SAMPLES))
    ]
    manifest = Manifest(
        dataset="made",
        layout="folder",
        licence="none",
        source="made up",
        rendition=Rendition(size=256, image_resample="", mask_resample=""),
        source_digest="",
        classes={f"class{c:05d}": ClassCounts(train=int(n)) for c, n in enumerate(counts)},
        shards=shards,
        index=IndexInfo(name=name.name, num_bytes=name.stat().st_size, num_samples=num_images, sha256=digest),
    )
    (folder / MANIFEST_NAME).write_text(manifest.sealed().model_dump_json())


def _class_of(numbers: np.ndarray, num_images: int, num_classes: int) -> np.ndarray:
    return numbers * num_classes // num_images


def _rows(start: int, stop: int, num_images: int, num_classes: int) -> pa.Table:
    numbers = np.arange(start, stop)
    classes = [f"class{c:05d}" for c in _class_of(numbers, num_images, num_classes)]
    keys = [f"{c}/train/good/{n:09d}" for c, n in zip(classes, numbers, strict=True)]
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    none = pa.nulls(len(numbers))
    columns = dict.fromkeys(INDEX_SCHEMA.names, none) | {
        "sample_id": [f"made/{key}" for key in keys],
        "class_name": classes,
        "split": ["train"] * len(keys),
        "label": np.zeros(len(keys)),
        "defect_type": ["good"] * len(keys),
        "shard": numbers // SHARD_SAMPLES,
        "key": keys,
        "image_offset": numbers % SHARD_SAMPLES * 80_000,
        "image_size": np.full(len(keys), 79_000),
        "image_sha256": digests,
        "mask_offset": [[]] * len(keys),
        "mask_size": [[]] * len(keys),
        "mask_sha256": [[]] * len(keys),
        "mask_ids": [[]] * len(keys),
        "group": [""] * len(keys),
        "view": [""] * len(keys),
        "source": [f"{key}.png" for key in keys],
        "source_sha256": digests,
        **dict.fromkeys(("width", "height"), np.full(len(keys), 256)),
        **dict.fromkeys(("source_width", "source_height"), np.full(len(keys), 1024)),
    }
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in INDEX_SCHEMA], schema=INDEX_SCHEMA)


def make_cache(folder: Path, num_images: int) -> None:
    """A complete feature cache of so many images, whose shards hold nothing."""
    shards = []
    for first in range(0, num_images, SHARD_RECORDS):
        count = min(SHARD_RECORDS, num_images - first)
        buffer = io.BytesIO()
        np.save(buffer, np.random.default_rng(first).gamma(2.0, size=(count, 2, CACHED[0])))
        shard = CacheShard(
            name=f"features-{first:08d}.f16",
            first=first,
            num_records=count,
            sha256="",
            moments=f"moments-{first:08d}.npy",
            moments_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        )
        Store(folder).write(shard.moments, buffer.getvalue())
        shards.append(shard)
    CacheFolder(Store(folder), {}, "made", CACHED).seal(shards)


def scored_class(per_class: int, bins: int = Protocol().histogram_bins) -> EvaluationState:
    """A class `made/class` of scored images, half of them with one of three types of defect."""
    rng = np.random.default_rng(0)
    protocol = Protocol(histogram_bins=bins)
    state, side = EvaluationState(protocol), protocol.map_size
    for number in range(per_class):
        label = number % 2
        found = rng.gamma(2.0, 1.0 + 0.2 * label, (side, side)).astype(np.float32)
        mask = np.zeros((side, side), dtype=bool)
        if label:
            mask[40:80, 100:130] = True
            found[mask] *= 2
        image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        defect = DEFECTS[number % 3] if label else "good"
        state.update(ScoredImage(f"{number:06d}", "made/class", label, defect, float(found.max()), found, mask, image))
    return state


def parts(template: EvaluationState, num_classes: int, ranks: int) -> Iterator[bytes]:
    """What ranks have of an evaluation of so many classes, whose images are those of the template under other names."""
    own = template.classes["made/class"]
    for rank in range(ranks):
        state = EvaluationState(template.protocol)
        for number in range(rank, num_classes, ranks):
            _add(state, f"made/class{number:05d}", own)
        yield encode_state(state)


def _add(state: EvaluationState, name: str, own: ClassState) -> None:
    rows = {f"{name}/{key}": replace(r, sample_id=f"{name}/{key}", class_name=name) for key, r in own.scores.items()}
    for row in rows.values():
        state.record(row)
    target = state.class_state(name)
    target.histograms = copy.copy(own.histograms)
    target.pixels = {f"{name}/{key}": pixels for key, pixels in own.pixels.items()}
    panels = [replace(panel, row=rows[f"{name}/{key}"]) for key, panel in own.board.panels.items()]
    target.board = PanelBoard(Panel(p.row, p.image, p.mask, p.anomaly_map) for p in panels)
