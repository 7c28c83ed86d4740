"""Speed of a conversion beside a bare loop that decodes, resizes and encodes the same 1024-px PNGs.

python benchmarks/data/conversion.py --work DIR [--images 200] [--repetitions 3]
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

from images import large_tree
from PIL import Image

from data_tools.conversion.convert import Conversion, convert


def bare(path: Path) -> int:
    """Nothing is checked, hashed, stored or indexed."""
    buffer = io.BytesIO()
    image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS)
    image.save(buffer, format="PNG", compress_level=6)
    return len(buffer.getvalue())


def bare_loop(paths: list[Path], workers: int) -> None:
    with multiprocessing.get_context("forkserver").Pool(workers) as pool:
        for _ in pool.imap(bare, paths):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    tree = large_tree(arguments.work, arguments.images)
    paths = sorted(tree.rglob("*.png"))
    workers, out = len(os.sched_getaffinity(0)), arguments.work / "converted"
    seconds: dict[str, list[float]] = {"bare loop": [], "fmad data convert": []}
    for _ in range(arguments.repetitions):
        start = time.perf_counter()
        bare_loop(paths, workers)
        seconds["bare loop"].append(time.perf_counter() - start)
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        convert(Conversion(layout="mvtec", dataset="bench", source=tree, out=str(out), num_workers=workers))
        seconds["fmad data convert"].append(time.perf_counter() - start)
    total = sum(path.stat().st_size for path in paths) / 1e6
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(out.rglob("*.tar")))).hexdigest()[:12]
    print(f"{workers} cores, {platform.machine()}, {len(paths)} PNGs of 1024 px, {total:.0f} MB; shards {digest}\n")
    print("| | images/s | of the bare loop |\n|---|---|---|")
    reference = statistics.median(seconds["bare loop"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"| {name} | {len(paths) / middle:.1f} | {100 * reference / middle:.0f} % |")


if __name__ == "__main__":
    main()
