"""Score images that nobody has labelled, on any number of processes: a table with decisions, heat maps and overlays."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detections, Detector
from fmad_dist.detector.files import DetectorSpec, locate_detector, read_spec
from fmad_dist.jobs.folder import Identity
from fmad_dist.jobs.job import Job, complete
from fmad_dist.jobs.scoring import LONGEST_WAIT, in_shards
from fmad_dist.jobs.speed import ProcessSpeed, speed_of
from fmad_dist.prediction.inputs import SOURCES_FACT, Item, Loaded, find_images, lasting_sources, load, read_ahead
from fmad_dist.prediction.results import (
    ANOMALOUS,
    AS_CALIBRATED,
    CSV_NAME,
    CSV_ROWS,
    MAPS,
    NORMAL,
    OVERLAYS,
    TABLE_NAME,
    UNREADABLE,
    PictureFiles,
    Pictures,
    PredictionSummary,
    csv_bytes,
    joined,
    parquet_bytes,
    read_parquet,
    summarise,
    table_of,
)
from fmad_dist.scoring.calibration import ThresholdName
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of

FORMAT = "fmad-prediction/1"
BATCH = {"cpu": 8, "cuda": 64}
READERS = 4  # threads
MAX_BAD = 100


@dataclass(frozen=True)
class PredictionOptions:
    """What to score and where results go."""

    model: str  # detector folder, run directory, URL of either or models:/ URI
    sources: tuple[str, ...]  # URLs of folders, tars and converted datasets
    out: str  # URL of a folder for the table and the pictures, which all nodes share
    name: str = ""  # what the record calls the model; "" = `model`
    sensitivity: float = AS_CALIBRATED
    threshold: ThresholdName = "class"  # of the inferred class, or one for all: for products of no class
    pictures: str = Pictures.ALL  # of which images: all, anomalous or none
    max_bad: int = MAX_BAD  # unreadable images
    save_s: float = 60.0  # between two writes of what a rank has scored, to go on from after a kill
    compiled: bool = False  # the network, for speed on a GPU
    overwrite: bool = False  # another prediction in `out` may be removed


def run_prediction(
    options: PredictionOptions, world: World, detector: Detector | None = None
) -> PredictionSummary | None:
    """Every rank calls; the main rank returns what was found, the others None. A `detector` that is loaded already is
    taken instead of `options.model`.

    Raises:
        UserError: the model or a source cannot be read, more than `max_bad` images are unreadable, or the results
            cannot be written; or `out` is refused, see `JobFolder.begin`.
    """
    world.join(timeout=LONGEST_WAIT)
    return complete(PredictionJob(options, world, detector), options, world)


class PredictionJob(Job[list[Loaded], PredictionSummary]):
    """One rank's part: rows of the table, and the pictures that are written beside. Every rank makes one at once."""

    title = "predict"
    needs_shared_out = True
    detector: Detector

    def __init__(self, options: PredictionOptions, world: World, detector: Detector | None) -> None:
        self.options, self.given, self.store = options, detector, Store(options.out)
        self.model = Path() if detector else locate_detector(options.model)
        self.spec = detector.spec if detector else read_spec(self.model)
        items = world.broadcast(_find(options, self.spec.features.image_size) if world.is_main else [])
        batch = BATCH[world.device.type]
        self.shards = in_shards(items, batch)
        key, inputs = _key_and_inputs(options, self.spec, items, batch)
        files = (MAPS, OVERLAYS, TABLE_NAME, CSV_NAME)
        self.identity = Identity("a prediction", "sensitivity", key, inputs, removed=files)
        self.pictures = PictureFiles(options.out, Pictures(options.pictures))
        self.tables: list[pa.Table] = []  # of whole shards
        self.rows: list[dict[str, Any]] = []  # of the shard at hand
        self.num_bad, self.last_error = 0, ""

    def load(self, world: World) -> None:
        detector = (self.given or Detector.load(self.model)).move_to(world.device, self.options.compiled)
        self.detector = detector.with_threshold(self.options.threshold).with_sensitivity(self.options.sensitivity)

    def read(self, batches: Sequence[Sequence[Item]]) -> Iterator[list[Loaded]]:
        return _loaded_batches(batches, self.spec.features.image_size)

    def score(self, batch: list[Loaded]) -> None:
        good = [image.pixels for image in batch if image.pixels is not None]
        if good:
            with self.watch.phase("score"):
                found = self.detector(torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2).contiguous())
                scored = zip(_rows(self.spec, found), found.relative_maps.float().cpu().numpy(), strict=True)
        for image in batch:
            item = image.item
            row: dict[str, Any] = {
                "image": item.name,
                "url": item.url,
                "start": item.start,
                "num_bytes": item.num_bytes,
            }
            if image.pixels is None:
                row |= {"decision": UNREADABLE, "error": image.error}
                self.num_bad, self.last_error = self.num_bad + 1, image.error
            else:
                values, levels = next(scored)
                row |= values
                self.pictures.add(item.name, image.pixels, levels, values["decision"] == ANOMALOUS)
            self.rows.append(row)

    def end_shard(self, number: int) -> UserError | None:
        self.tables.append(table_of(self.rows))
        self.rows = []
        return self._too_many_bad(self.num_bad, self.last_error)

    def flush(self) -> None:
        self.pictures.wait()

    def encoded(self) -> bytes:
        return parquet_bytes(joined(self.tables))

    def merge(self, parts: Iterable[bytes]) -> bytes:
        return parquet_bytes(joined(map(read_parquet, parts)))

    def facts(self) -> Mapping[str, str]:
        who = {"model": self.options.name or self.options.model, "sources": ", ".join(self.options.sources)}
        last = {SOURCES_FACT: json.dumps(lasting_sources(self.options.sources))}
        return {"format": FORMAT, **who, **self.identity.inputs, **last}

    def write(self, parts: Sequence[bytes], speeds: Sequence[ProcessSpeed]) -> Sequence[str]:
        table = joined(map(read_parquet, parts)).sort_by("image")  # as the images were found, whoever scored them
        summary = summarise(table)
        refusal = self._too_many_bad(summary.num_unreadable, summary.first_error)
        if refusal is not None:
            raise refusal
        files = {TABLE_NAME: parquet_bytes(table)}
        files |= {CSV_NAME: csv_bytes(table)} if table.num_rows <= CSV_ROWS else {}
        for name, data in files.items():
            self.store.write(name, data)
        speed = speed_of(speeds, 0.0, self.watch.device)
        if speed.num_images:
            waited = speed.seconds["read"] / sum(speed.seconds.values())
            print(f"{speed.images_per_s:.1f} images/s, {waited:.0%} of the time waiting for images", flush=True)
        return tuple(files)

    def finished(self) -> PredictionSummary:
        return summarise(read_parquet(self.store.read(TABLE_NAME)))

    def _too_many_bad(self, num_bad: int, error: str) -> UserError | None:
        if num_bad <= self.options.max_bad:
            return None
        return UserError(
            f"{num_bad} images could not be read and --max-bad allows {self.options.max_bad}, one of them: {error} "
            "What was scored is kept; the same command with a higher --max-bad goes on."
        )


def _find(options: PredictionOptions, image_size: int) -> list[Item]:
    target = Store(options.out)
    for url in options.sources:
        source = Store(url)
        if type(source.fs) is type(target.fs) and f"{target.path()}/".startswith(f"{source.path()}/"):
            raise UserError(f"{options.out}: lies inside the source {url}; choose an --out outside it.")
    left_out: list[str] = []
    found = find_images(options.sources, image_size, left_out)
    if left_out:
        print(f"{len(left_out)} files are hidden or no images and were left out, first: {left_out[0]}", flush=True)
    return found


def _key_and_inputs(
    options: PredictionOptions, spec: DetectorSpec, items: Sequence[Item], batch: int
) -> tuple[str, dict[str, str]]:
    """What stands for everything in the results, and the same in words."""
    listing = hashlib.sha256()
    for item in items:
        listing.update(f"{item.name}\0{item.url}\0{item.start}\0{item.num_bytes}\n".encode())
    inputs = {
        "weights": spec.weights_sha256[:12],
        "sensitivity": f"{options.sensitivity:g}",
        "threshold": options.threshold,
        "images": f"{len(items)} ({listing.hexdigest()[:12]})",
        "pictures": str(options.pictures),
    }
    return key_of(inputs | {"detector": spec.model_dump(mode="json"), "batch": batch, "format": FORMAT}), inputs


def _loaded_batches(batches: Sequence[Sequence[Item]], size: int) -> Iterator[list[Loaded]]:
    items = [item for batch in batches for item in batch]
    ahead = 2 * max(map(len, batches), default=0)
    loaded = read_ahead(items, lambda item: load(item, size), READERS, ahead)
    for batch in batches:
        yield [next(loaded) for _ in batch]


def _rows(spec: DetectorSpec, found: Detections) -> list[dict[str, Any]]:
    """What the table says of each image that was scored."""
    names = ("score", "normalised", "threshold", "decision", "class")
    decisions = [ANOMALOUS if one else NORMAL for one in found.anomalous.tolist()]
    classes = [spec.class_names[number] for number in found.classes.tolist()]
    values = (found.scores.tolist(), found.normalised.tolist(), found.thresholds.tolist(), decisions, classes)
    return [dict(zip(names, row, strict=True)) | {"error": ""} for row in zip(*values, strict=True)]
