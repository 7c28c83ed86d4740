"""A whole prediction: find the images, score them on all ranks, write the table on the main one.

Images are dealt in fixed shards of fixed batches, as an evaluation deals them, and on a CPU every process computes with
one thread; so the results have the same bits for every number of processes, and after a kill.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation.speed import Stopwatch, speed_of
from fmad_dist.prediction.parts import FORMAT, Parts
from fmad_dist.prediction.pictures import PictureFiles, Pictures
from fmad_dist.prediction.reading import Loaded, load, read_ahead
from fmad_dist.prediction.sources import Item, find_images
from fmad_dist.prediction.table import (
    ANOMALOUS,
    AS_CALIBRATED,
    CSV_NAME,
    CSV_ROWS,
    NORMAL,
    TABLE_NAME,
    UNREADABLE,
    PredictionSummary,
    csv_bytes,
    parquet_bytes,
    summarise,
    table_of,
)
from fmad_dist.progress import Progress
from fmad_dist.scoring.calibration import ThresholdName
from fmad_dist.shares import LONGEST_WAIT, in_shards
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of
from fmad_dist.training.engine import broadcast_object, gather_objects
from fmad_dist.world import World

BATCH = {"cpu": 8, "cuda": 64}
READERS = 4  # threads
MAX_BAD = 100


@dataclass(frozen=True)
class PredictionOptions:
    """What to score and where results go; `name` is what the record calls the model."""

    sources: Sequence[str]
    out: str
    name: str = ""
    sensitivity: float = AS_CALIBRATED
    threshold: ThresholdName = "class"  # of the inferred class, or one for all: for products of no class
    pictures: Pictures = Pictures.ALL
    max_bad: int = MAX_BAD
    overwrite: bool = False
    compiled: bool = False  # the network, for speed on a GPU


def run_prediction(model: str, options: PredictionOptions, world: World) -> PredictionSummary | None:
    """Every rank calls; the main rank returns what was found, the others None.

    Raises:
        UserError: the model or a source cannot be read, more than `max_bad` images are unreadable, or the results
            cannot be written.
    """
    detector = Detector.load(model)
    world.join(timeout=LONGEST_WAIT)
    summary = predict(detector, options, world)
    world.leave()
    return summary


def predict(detector: Detector, options: PredictionOptions, world: World) -> PredictionSummary | None:
    """The same with a loaded detector, among processes that have met."""
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    detector.place(world.device, options.compiled)
    if options.threshold != "class":
        detector = detector.with_threshold(options.threshold)
    if options.sensitivity != AS_CALIBRATED:
        detector = detector.with_sensitivity(options.sensitivity)
    items: list[Item] = broadcast_object(_find(options, detector.image_size) if world.is_main else None, 0)
    batch = BATCH[world.device.type]
    parts = Parts(options.out, *_identity(detector, options, items, batch))
    finished = parts.begin(options.overwrite) if world.is_main else None
    if broadcast_object(finished is not None, 0):
        if finished is not None:
            print("everything was scored before; nothing is left to do", flush=True)
        return None if finished is None else summarise(finished)
    shards = in_shards(items, batch)
    done = broadcast_object(parts.done() if world.is_main else None, 0)
    if done and world.is_main:
        num_done = sum(len(images) for number in done for images in shards[number])
        print(f"{num_done} images were scored before; going on with the others", flush=True)
    watch = Stopwatch(world.device)
    left = [number for number in range(len(shards)) if number not in done]
    own = [(number, shards[number]) for number in left[world.rank :: world.size]]
    _score_share(detector, own, options, parts, world, watch)
    measured = gather_objects(watch.stop())  # and so all ranks have saved
    if not world.is_main:
        return None
    table = parts.collect(len(shards))
    summary = summarise(table)
    _check_bad(summary.num_unreadable, summary.first_error, options)
    parts.finish(_files(table))
    speed = speed_of(measured, 0.0, world.device)
    if speed.num_images:
        waited = speed.seconds["read"] / sum(speed.seconds.values())
        print(f"{speed.images_per_s:.1f} images/s, {waited:.0%} of the time waiting for images", flush=True)
    return summary


def _find(options: PredictionOptions, image_size: int) -> list[Item]:
    target = Store(options.out)
    for url in options.sources:
        source = Store(url)
        if type(source.fs) is type(target.fs) and f"{target.path()}/".startswith(f"{source.path()}/"):
            raise UserError(f"{options.out}: lies inside the source {url}; choose an --out outside it.")
    return find_images(options.sources, image_size)


def _identity(
    detector: Detector, options: PredictionOptions, items: Sequence[Item], batch: int
) -> tuple[str, dict[str, str]]:
    """A key that stands for everything in the results, and what it depends on in words."""
    listing = hashlib.sha256()
    for item in items:
        listing.update(f"{item.name}\0{item.url}\0{item.start}\0{item.num_bytes}\n".encode())
    spec = detector.spec.model_dump(mode="json")
    facts = {
        "weights": detector.spec.weights_sha256[:12],
        "sensitivity": f"{options.sensitivity:g}",
        "threshold": options.threshold,
        "images": f"{len(items)} ({listing.hexdigest()[:12]})",
        "pictures": options.pictures.value,
    }
    key = key_of(facts | {"detector": spec, "batch": batch, "format": FORMAT})
    return key, {"model": options.name, "sources": ", ".join(options.sources), **facts}


def _score_share(
    detector: Detector,
    shards: Sequence[tuple[int, list[Sequence[Item]]]],
    options: PredictionOptions,
    parts: Parts,
    world: World,
    watch: Stopwatch,
) -> None:
    """Score this rank's shards and save each when all its pictures are written."""
    files = PictureFiles(options.out, options.pictures)
    batches = [batch for _, shard in shards for batch in shard]
    loaded = watch.reading(_loaded_batches(batches, detector.image_size))
    num_bad = 0
    with Progress(world.own("predict"), sum(map(len, batches)), shown=world.is_main) as progress:
        for number, shard in shards:
            rows: list[dict[str, object]] = []
            for _, images in zip(shard, loaded, strict=False):  # the shard first: it ends, the images go on
                rows += _score_batch(detector, images, files, watch)
                bad = [image.error for image in images if image.pixels is None]
                num_bad += len(bad)
                _check_bad(num_bad, bad[-1] if bad else "", options)
                watch.num_images += len(images)
                progress.advance(len(images))
            with watch.phase("save"):
                files.wait()
                parts.save(number, table_of(rows))


def _loaded_batches(batches: Sequence[Sequence[Item]], size: int) -> Iterator[list[Loaded]]:
    items = [item for batch in batches for item in batch]
    ahead = 2 * max(map(len, batches), default=0)
    loaded = read_ahead(items, lambda item: load(item, size), READERS, ahead)
    for batch in batches:
        yield [next(loaded) for _ in batch]


def _score_batch(
    detector: Detector, images: Sequence[Loaded], files: PictureFiles, watch: Stopwatch
) -> Iterator[dict[str, object]]:
    """The rows of a batch, in order; pictures go to `files`."""
    good = [image.pixels for image in images if image.pixels is not None]
    if good:
        with watch.phase("score"):
            found = detector(torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2).contiguous())
            levels = found.relative_maps.float().cpu().numpy()
            rows = _rows(detector, found)
    position = 0
    for image in images:
        if image.pixels is None:
            yield {"decision": UNREADABLE, "error": image.error} | _place(image.item)
            continue
        files.add(image.item.name, image.pixels, levels[position], rows[position]["decision"] == ANOMALOUS)
        yield rows[position] | _place(image.item)
        position += 1


def _rows(detector: Detector, found: Detections) -> list[dict[str, object]]:
    columns = (found.scores, found.normalised, found.thresholds, found.anomalous, found.classes)
    return [
        {
            "score": score,
            "normalised": normalised,
            "threshold": threshold,
            "decision": ANOMALOUS if anomalous else NORMAL,
            "class": detector.spec.class_names[number],
            "error": "",
        }
        for score, normalised, threshold, anomalous, number in zip(*(one.tolist() for one in columns), strict=True)
    ]


def _place(item: Item) -> dict[str, object]:
    return {"image": item.name, "url": item.url, "start": item.start, "num_bytes": item.num_bytes}


def _check_bad(num_bad: int, error: str, options: PredictionOptions) -> None:
    if num_bad > options.max_bad:
        raise UserError(
            f"{num_bad} images could not be read and --max-bad allows {options.max_bad}, one of them: {error} What was "
            "scored is kept; the same command with a higher --max-bad goes on."
        )


def _files(table: pa.Table) -> dict[str, bytes]:
    files = {TABLE_NAME: parquet_bytes(table)}
    return files | ({CSV_NAME: csv_bytes(table)} if table.num_rows <= CSV_ROWS else {})
