"""Time from nothing to the first batch after a resume in the middle of an epoch, on a manifest of 100,000 samples.

python benchmarks/data/resume.py --work DIR [--samples 100000]
The samples are rows of an index that point to the bytes of a few real images.
"""

import argparse
import hashlib
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

BATCH, POSITION = 16, 61_234


def inflate(work: Path, samples: int) -> str:
    """A dataset of `samples` rows over the shards of a small one; returns its URL."""
    from images import small_tree

    from data_tools.conversion.convert import Conversion, convert
    from fmad_dist.storage import Store
    from fmad_dist.stream.dataset import index_bytes, load_dataset
    from fmad_dist.stream.manifest import MANIFEST_NAME, ClassCounts, IndexInfo

    out = work / f"manifest-{samples}"
    manifest = convert(Conversion(layout="mvtec", dataset="bench", source=small_tree(work, 200), out=str(out))).manifest
    table = load_dataset(str(out)).table
    train = table.filter(pa.array(np.array(table.column("split").to_pylist()) == "train"))
    rows = train.take(np.arange(samples) % train.num_rows)
    ids = pa.array([f"bench/class{n % 50:02d}/train/good/{n:07d}" for n in range(samples)])
    rows = rows.set_column(0, "sample_id", ids).set_column(
        1, "class_name", pa.array([f"class{n % 50:02d}" for n in range(samples)])
    )
    index = index_bytes(rows)
    name = f"index-{hashlib.sha256(index).hexdigest()[:16]}.parquet"
    info = IndexInfo(name=name, num_bytes=len(index), num_samples=samples, sha256=hashlib.sha256(index).hexdigest())
    classes = {f"class{n:02d}": ClassCounts(train=samples // 50) for n in range(50)}
    large = manifest.model_copy(update={"index": info, "classes": classes}).sealed()
    Store(out).write(name, index)
    Store(out).write(MANIFEST_NAME, large.model_dump_json().encode())
    return str(out)


def first_batch(url: str, workers: int) -> None:
    """What a resumed process does before its first step."""
    begin = time.perf_counter()
    from fmad_dist.config.run import DataConfig
    from fmad_dist.stream.batches import StreamDataset, stream_batches
    from fmad_dist.stream.image_source import ImageSource
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.stream.training_stream import open_stream

    start = time.perf_counter()
    stream = open_stream(DataConfig(manifests=(url,)), seed=0)
    digest = stream.plan.digest
    planned = time.perf_counter()
    dataset = StreamDataset(ImageSource(stream.mixture, 256), stream.mixture, stream.plan)
    step = POSITION // BATCH
    positions = BatchLayout.fit(BATCH, None, 1).batches(0, range(BATCH * step, BATCH * (step + 100), BATCH))
    batches = stream_batches(dataset, positions, workers=workers)
    batch = next(batches)
    done = time.perf_counter()
    assert batch.positions[0] == step * BATCH
    parts = [f"{value:.2f}" for value in (start - begin, planned - start, done - planned)]
    print(f"| {workers} | {' | '.join(parts)} | **{done - start:.2f}** | {digest[:8]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--workers", type=int, help="only measure, in this process")
    arguments = parser.parse_args()
    if arguments.workers is not None:
        first_batch(str(arguments.work), arguments.workers)
        return
    url = inflate(arguments.work, arguments.samples)
    print(f"{arguments.samples:,} samples, {platform.machine()}, Python {platform.python_version()}\n")
    print("| workers | imports s | manifest, index, split, plan s | first batch s | both s | plan |")
    print("|---|---|---|---|---|---|", flush=True)
    for workers in (0, 2, 0, 2, 0, 2):
        subprocess.run([sys.executable, __file__, "--work", url, "--workers", str(workers)], check=True)


if __name__ == "__main__":
    main()
