"""Peak memory and seconds of what grows with images, classes and predictions, each case in a process of its own.

    python benchmarks/scale/scale.py [--case plan --size 500000 --classes 250] [--out scale.json]

Without `--case` every case runs at two sizes, and the line through both gives the figures at
the full size. Memory is what the
process has at its peak: `private` (anonymous, its own) and `resident` (with pages of mapped files, which processes of a
node share and the kernel takes back at need).
"""

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.scale.made import CACHED, make_cache, make_dataset, parts, scored_class  # noqa: E402
from fmad_dist.base.world import World  # noqa: E402
from fmad_dist.config.protocol import Protocol  # noqa: E402

SIZES = {  # images, classes or predictions: at first, in all, and per class
    "plan": (250_000, 10_000_000, 2_000),
    "features": (50_000, 10_000_000, 2_000),
    "deviation": (100, 5_000, 1),
    "evaluate": (2_000, 1_000_000, 200),
    "report": (2_000, 1_000_000, 200),
    "bootstrap": (20_000, 1_000_000, 10**9),
}
RANKS = 512  # of the training
PARTS = 8  # files of ranks that an evaluation merges


class Peak:
    """The most memory of this process while a block runs, in bytes above nothing, and the seconds that it took."""

    def __init__(self) -> None:
        self.private = self.resident = 0
        self.seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,))
        watcher.start()
        start = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start
        done.set()
        watcher.join()

    def _watch(self, done: threading.Event) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith(" kB")}
            self.private = max(self.private, int(found["RssAnon"]) * 1024)
            self.resident = max(self.resident, int(found["VmRSS"]) * 1024)
            if done.wait(0.01):
                return


def plan(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """Load the index, plan an epoch for one of RANKS processes, and look up what it reads first."""
    from fmad_dist.config.run import DataConfig
    from fmad_dist.stream.batches import StreamDataset
    from fmad_dist.stream.image_source import ImageSource
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.stream.training_stream import open_stream

    with peak.measured():
        stream = open_stream(DataConfig(manifests=(str(folder / "made"),)), seed=0)
        assert stream.plan.digest
        layout = BatchLayout.fit(RANKS * 16, None, RANKS)
        images = ImageSource(stream.mixture, 256)
        for step in range(2):
            for row in stream.plan.at(layout.positions(step, 7)).ravel().tolist():
                dataset, index = stream.mixture.locate(row)
                assert dataset.image_location(index)
                assert stream.mixture.sample_id(row)
    sent = len(pickle.dumps(StreamDataset(images, stream.mixture, stream.plan)))
    return {"bytes sent to each reader process": sent}


def features(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """Open a complete cache, and take whitening and class means from it."""
    from fmad_dist.features.cache import SHARD_RECORDS, CachedSource, CacheFolder
    from fmad_dist.features.sums import summed
    from fmad_dist.features.whitening import Whitening
    from fmad_dist.storage import Store
    from fmad_dist.stream.mixture import Mixture

    mixture = Mixture.load([str(folder / "made")])
    rows, norm, tokens = mixture.rows("train"), Whitening(CACHED[0]), CACHED[1] * CACHED[2]
    with peak.measured():
        cache = CacheFolder(Store(folder / "cache"), {}, "made", CACHED).open()
        assert cache is not None
        source = CachedSource(mixture, {"made": cache})

        def moments(own: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(own), SHARD_RECORDS):
                yield source.moments(own[start : start + SHARD_RECORDS])

        sums = summed(rows, mixture.class_numbers[rows], classes, moments, norm, tokens, World())
        sums.set(norm, tokens)
        assert len(sums.class_means(norm, tokens)) == classes
    return {"bytes of cache.json": (folder / "cache" / "cache.json").stat().st_size}


def deviation(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """What the default scorer keeps of so many classes."""
    from fmad_dist.scoring.deviation import DeviationConfig

    trained: Any = SimpleNamespace(num_classes=size, shape=(192, 16, 16), coupling_strength=0.0, path=None)
    with torch.device("meta"), peak.measured():
        scorer = DeviationConfig().build(trained)
    return {"bytes of the scorer": sum(one.nbytes for one in scorer.buffers())}


def evaluate(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """Merge what killed ranks left, compute the results and write the state."""
    from fmad_dist.evaluation.evaluate import merged_state
    from fmad_dist.metrics.compute import compute_results
    from fmad_dist.metrics.wire import decode_state, encode_state

    with peak.measured():
        found = sorted((folder / "parts").iterdir())
        protocol = decode_state(found[0].read_bytes()).protocol
        state = merged_state((path.read_bytes() for path in found), protocol)
        results = compute_results(state)
        data = encode_state(state)
        (folder / "state").write_bytes(data)
    assert results.mean.num_images == size
    return {"bytes of the state": len(data)}


def report(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """Write the report of a finished evaluation."""
    from fmad_dist.metrics import bootstrap
    from fmad_dist.metrics.compute import compute_results
    from fmad_dist.metrics.wire import decode_state
    from fmad_dist.report.html import write_report

    bootstrap.DRAWS = bootstrap.BLOCK  # intervals are another case
    state = decode_state((folder / "state").read_bytes())
    results = compute_results(state)
    with peak.measured():
        write_report(results, state, folder / "out" / "report.html", title="made", facts={})
    pages = [path.stat().st_size for path in (folder / "out").rglob("*.html")]
    return {"bytes of the largest page": max(pages)}


def bootstrap(folder: Path, size: int, classes: int, peak: Peak) -> dict[str, Any]:
    """The intervals of one class with all the images."""
    from fmad_dist.metrics.many_images import poisson_draws
    from fmad_dist.metrics.results import ScoreRow

    own = scored_class(40).classes["made/class"]
    rows, pixels = list[ScoreRow](), {}
    for number in range(size):
        row = list(own.scores.values())[number % len(own.scores)]
        rows.append(ScoreRow(f"{number:07d}", "made/class", row.label, row.defect_type, row.score + number / size))
        pixels[rows[-1].sample_id] = own.pixels[row.sample_id]
    with peak.measured():
        poisson_draws(rows, pixels, 0.3)
    return {}


CASES: dict[str, Callable[[Path, int, int, Peak], dict[str, Any]]] = {
    "plan": plan,
    "features": features,
    "deviation": deviation,
    "evaluate": evaluate,
    "report": report,
    "bootstrap": bootstrap,
}


def make(case: str, folder: Path, size: int, classes: int, bins: int) -> None:
    """What a case reads."""
    if case in ("plan", "features"):
        make_dataset(folder / "made", size, classes)
        if case == "features":
            make_cache(folder / "cache", size)
    elif case in ("evaluate", "report"):
        made = parts(scored_class(SIZES[case][2], bins), classes, PARTS if case == "evaluate" else 1)
        where = folder / "parts" if case == "evaluate" else folder
        where.mkdir(exist_ok=True)
        for number, data in enumerate(made):
            (where / (f"{number}" if case == "evaluate" else "state")).write_bytes(data)


def run(case: str, size: int, classes: int, bins: int) -> dict[str, Any]:
    """A case in a process of its own, on what another process made."""
    with tempfile.TemporaryDirectory() as folder:
        for step in ("--make", "--measure"):
            command = [sys.executable, __file__, step, folder, "--case", case, "--size", str(size)]
            command += ["--classes", str(classes), "--bins", str(bins)]
            here = {**os.environ, "TMPDIR": folder}  # a large index is mapped from there
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=here)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--size", type=int, help="images or predictions")
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--factor", type=float, default=1.0, help="of the two sizes that are measured")
    parser.add_argument("--bins", type=int, default=Protocol().histogram_bins, help="protocol.histogram_bins")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.case[0], arguments.make, arguments.size, arguments.classes, arguments.bins)
        return
    if arguments.measure:
        import fmad_dist.training.data  # noqa: F401  # libraries are loaded before memory is watched

        peak = Peak()
        more = CASES[arguments.case[0]](arguments.measure, arguments.size, arguments.classes, peak)
        print(json.dumps({"private": peak.private, "resident": peak.resident, "seconds": peak.seconds, **more}))
        return
    measured = {}
    for case in arguments.case or CASES:
        first, full, per_class = SIZES[case]
        sizes = [int(first * arguments.factor * n) for n in (1, 2)]
        found = [run(case, size, max(1, size // per_class), arguments.bins) for size in sizes]
        measured[case] = {"sizes": sizes, "measured": found, "in all": full, "at that": line(full, sizes, found)}
        print(case, json.dumps(measured[case]), flush=True)
    facts = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version()}
    if arguments.out:
        arguments.out.write_text(json.dumps({**facts, "numpy": np.__version__, "cases": measured}, indent=1) + "\n")


def line(full: int, sizes: list[int], found: list[dict[str, Any]]) -> dict[str, float]:
    """Every figure at the full size, on the line through the two sizes."""
    small, large = found
    share = (full - sizes[1]) / (sizes[1] - sizes[0])
    return {name: round(large[name] + share * (large[name] - small[name]), 3) for name in large}


if __name__ == "__main__":
    main()
