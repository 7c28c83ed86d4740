"""How long planning one million samples for 512 ranks takes, and how much memory.

python benchmarks/data/plan_scale.py [--samples 1000000] [--ranks 512]
"""

import argparse
import platform
import resource
import time

import numpy as np

from fmad_dist.stream.plan import BatchLayout, StreamPlan
from fmad_dist.stream.training_stream import class_quotas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--classes", type=int, default=48)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    classes = rng.integers(0, arguments.classes, arguments.samples)
    indices = np.arange(arguments.samples)
    names = [f"dataset/{number}" for number in range(arguments.classes)]
    before = peak_mb()
    start = time.perf_counter()
    quotas = class_quotas(np.bincount(classes, minlength=arguments.classes), names, temperature=2.0)
    plan = StreamPlan(indices, classes, "content", 0, quotas)
    digest = plan.digest
    layout = BatchLayout.fit(arguments.ranks * 16, None, arguments.ranks)
    ranks = layout.rank_of(np.arange(plan.epoch_size))
    order = plan.epoch(0)
    by_rank = np.split(order[np.argsort(ranks, kind="stable")], np.cumsum(np.bincount(ranks))[:-1])
    elapsed = time.perf_counter() - start
    assert sum(map(len, by_rank)) == plan.epoch_size
    assert len(by_rank) == arguments.ranks
    print(f"plan {digest[:12]}: {arguments.samples:,} samples, {plan.epoch_size:,} per epoch, {arguments.ranks} ranks")
    print(f"all samples of all ranks in reading order: {elapsed:.2f} s, peak resident {peak_mb():.0f} MB "
          f"({before:.0f} MB before planning)")  # fmt: skip
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}, Python {platform.python_version()}")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
