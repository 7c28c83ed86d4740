"""Samples per second of shuffled, decoded 256-px images: fmad beside webdataset and mosaicml-streaming.

python benchmarks/data/reading.py --work DIR [--images 1500] [--originals 150] [--repetitions 3]
Every configuration reads all images once per repetition; repetitions are interleaved, the median counts.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from images import large_tree, small_tree
from PIL import Image
from torch.utils.data import DataLoader

from data_tools.conversion.convert import Conversion, convert
from fmad_dist.config.run import ReadOptions
from fmad_dist.stream.batches import StreamDataset, stream_batches
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import BatchLayout, StreamPlan

sys.path.insert(0, str(Path(__file__).parents[2]))  # for tests.support
BATCH = 16
SKIPPED = 16  # batches that come out of the workers' first buffers
PACKAGES = ("torch", "pillow", "webdataset", "mosaicml-streaming", "s3fs")


def fmad(url: str, workers: int, cache: str | None = None) -> Iterator[int]:
    mixture = Mixture.load([url])
    rows = mixture.rows("train")
    source = ImageSource(mixture, 256, ReadOptions(cache))
    dataset = StreamDataset(source, mixture, StreamPlan(rows, mixture.class_numbers[rows], mixture.digest))
    layout = BatchLayout.fit(BATCH, None, 1)
    batches = stream_batches(dataset, layout.batches(0, range(0, len(rows) - BATCH + 1, BATCH)), workers=workers)
    return (len(batch.data) for batch in batches)


def plain_webdataset(urls: list[str], workers: int) -> Iterator[int]:
    import webdataset

    webdataset.gopen_schemes["s3"] = open_s3
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000).decode("rgb8")
    if not workers:
        return (int(sample["png"].shape == (256, 256, 3)) for sample in dataset)
    loader = DataLoader(dataset.map(lambda sample: sample["png"]), batch_size=BATCH, num_workers=workers)
    return (len(batch) for batch in loader)


def open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> Any:
    import s3fs

    return s3fs.S3FileSystem().open(url, mode, block_size=8 << 20)


def mosaic(local: Path, remote: str | None, workers: int) -> Iterator[int]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(local), remote=remote, shuffle=True, batch_size=BATCH)
    if not workers:
        return (int(np.asarray(dataset[i]["image"]).shape == (256, 256, 3)) for i in order_of(dataset))
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack)
    return (len(batch) for batch in loader)


def order_of(dataset: Any) -> Iterator[int]:
    """The shuffled order of one process, as its iterator works it out."""
    return iter(np.random.default_rng(0).permutation(dataset.size).tolist())


def stack(samples: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(sample["image"]) for sample in samples])


def image_folder(paths: list[Path]) -> Iterator[int]:
    """What a loader without a conversion does: open, decode and resize the originals in shuffled order."""
    order = np.random.default_rng(0).permutation(len(paths))
    for number in order:
        np.asarray(Image.open(paths[number]).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))
        yield 1


def write_mds(tree: Path, out: Path) -> None:
    from streaming import MDSWriter

    if out.exists():
        return
    with MDSWriter(out=str(out), columns={"image": "png"}, size_limit=64 << 20) as writer:
        for path in sorted((tree / "product/train/good").iterdir()):
            writer.write({"image": Image.open(path).convert("RGB")})


def measured(runs: dict[str, Callable[[], Iterator[int]]], repetitions: int) -> dict[str, float]:
    """Median samples per second of each configuration, interleaved.

    With workers the clock starts at the first batch, because how processes are started is another question; without,
    it starts before anything is opened.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start, count = time.perf_counter(), 0
            for number, size in enumerate(run()):
                if number == SKIPPED and "workers" in name:
                    start, count = time.perf_counter(), 0
                count += size
            rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def local_runs(data: Path, mds: Path, originals: list[Path]) -> dict[str, Callable[[], Iterator[int]]]:
    tars = sorted(str(path) for path in (data / "shards").glob("train-*.tar"))
    runs: dict[str, Callable[[], Iterator[int]]] = {}
    for workers, name in ((0, "in process"), (2, "2 workers")):
        runs[f"local, {name} | fmad"] = lambda w=workers: fmad(str(data), w)
        runs[f"local, {name} | webdataset"] = lambda w=workers: plain_webdataset(tars, w)
        runs[f"local, {name} | mosaicml-streaming"] = lambda w=workers: mosaic(mds, None, w)
    runs["local, in process | 1024-px originals, decoded and resized"] = lambda: image_folder(originals)
    return runs


def remote_runs(url: str, tars: list[str], mds: str, work: Path) -> dict[str, Callable[[], Iterator[int]]]:
    def cold(folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    return {
        "S3, cold | fmad, no cache": lambda: fmad(url, 0),
        "S3, cold | fmad, cache": lambda: fmad(url, 0, str(cold(work / "cache"))),
        "S3, cached | fmad, cache": lambda: fmad(url, 0, str(work / "cache")),
        "S3, cold | webdataset": lambda: plain_webdataset(tars, 0),
        "S3, cold | mosaicml-streaming": lambda: mosaic(cold(work / "mds-local"), mds, 0),
        "S3, cached | mosaicml-streaming": lambda: mosaic(work / "mds-local", mds, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--originals", type=int, default=150)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    work: Path = arguments.work
    tree, data, mds = small_tree(work, arguments.images), work / "data", work / "mds"
    convert(Conversion(layout="mvtec", dataset="bench", source=tree, out=str(data), shard_mb=64))
    write_mds(tree, mds)
    originals = sorted((large_tree(work, arguments.originals) / "product/train/good").iterdir())
    rates = measured(local_runs(data, mds, originals), arguments.repetitions)
    rates |= measure_remote(work, data, mds, arguments.repetitions)
    print(f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}, "
          + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
          + f"; {arguments.images} images of 256 px, {arguments.repetitions} repetitions\n")  # fmt: skip
    print("| where | reader | samples/s |\n|---|---|---|")
    for name, rate in rates.items():
        where, reader = name.split(" | ")
        print(f"| {where} | {reader} | {rate:,.0f} |")


def measure_remote(work: Path, data: Path, mds: Path, repetitions: int) -> dict[str, float]:
    from fmad_dist.storage import Store
    from tests.support.radosgw import Radosgw

    server = Radosgw(Path("/tmp/fmad-bench-s3")).start()
    try:
        os.environ |= server.environment | {"S3_ENDPOINT_URL": server.endpoint}
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        store = Store("s3://bench")
        for folder, prefix in ((data, "data"), (mds, "mds")):
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    store.upload(path, f"{prefix}/{path.relative_to(folder)}")
        tars = [store.url_of(name) for name in store.list("data") if "/train-" in name]
        return measured(remote_runs("s3://bench/data", tars, "s3://bench/mds", work), repetitions)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
