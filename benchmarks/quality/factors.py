"""What changes a flow that is read by the nearest vector: one thing at a time, on two CPU cores.

    python benchmarks/quality/factors.py --source ../shared/data --out factors.jsonl
    python benchmarks/quality/factors.py --source ../shared/data --out factors.jsonl --seeds 3 --only default
    python benchmarks/quality/factors.py --table factors.jsonl

`--source` holds the five categories of shared_small.py. A line of the output is a trial, what it varies, its measures
on held-out normals with synthetic defects, which may choose, and on the test images, which may not (reading.py has the
details). A run that was broken off goes on where it stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch

sys.path.insert(0, str(Path(__file__).parent / "sweep"))
from images import Data, load
from reading import Sets, distances, figures, standardised, truths_of, whitened
from scores import WAYS, vectors
from sweep import Features
from torch import Tensor
from training import Trial, train

from fmad_dist.networks.dit import DiT

BASE = Trial("default", steps=1000, batch=8)
FACTORS = [
    BASE,
    replace(BASE, name="20 steps", steps=20),  # what is left without training
    replace(BASE, name="EMA .98", decay=0.98),  # the average of `fmad` reaches back a tenth of the steps done, at most
    replace(BASE, name="no EMA", decay=0.0),
    replace(BASE, name="loss of the data", weight="data"),
    replace(BASE, name="loss of the noise", weight="noise"),
    replace(BASE, name="taps count the same", even_taps=True),
    replace(BASE, name="labels", labels=True),
    replace(BASE, name="coupling ot", coupling="ot"),
    replace(BASE, name="coupling wt_soft", coupling="wt_soft"),
    replace(BASE, name="coupling wt_token", coupling="wt_token"),
    replace(BASE, name="late times", time_mean=1.0),
    replace(BASE, name="logit-normal times", time_mean=0.0),
    replace(BASE, name="learned skip", skip="learned"),
    replace(BASE, name="flips", flips=True),
    replace(BASE, name="batch 32 for 250 steps", batch=32, steps=250),
    replace(BASE, name="weight decay .05", weight_decay=0.05),
]
INVERSION = "inversion3"
MEASURES = ("image", "pixel", "aupro")
SPLITS = ("synthetic", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("factors.jsonl"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help="names of factors, separated by commas; all where it is not given")
    parser.add_argument("--workers", type=int, default=2, help="processes of a thread each")
    parser.add_argument("--steps", type=float, default=1.0, help="factor, for a rehearsal")
    parser.add_argument("--table", type=Path, help="print the table of these results and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(lines_of(arguments.table)))
        return
    if arguments.source is None:
        parser.error("--source is needed: the folder of the five categories")
    run(arguments)
    print(table(lines_of(arguments.out)))


def run(arguments: argparse.Namespace) -> None:
    done = {identity(line["trial"]) for line in lines_of(arguments.out)} if arguments.out.exists() else set()
    trials = [
        replace(trial, seed=seed, steps=max(2, round(trial.steps * arguments.steps)))
        for seed in range(arguments.seeds)
        for trial in chosen(arguments.only)
    ]
    context = get_context("spawn")
    queue = context.Queue()
    for trial in trials:
        if identity(asdict(trial)) not in done:
            queue.put(trial)
    for _ in range(arguments.workers):
        queue.put(None)
    data = load(arguments.source, arguments.workers)
    workers = [context.Process(target=work, args=(data, queue, arguments.out)) for _ in range(arguments.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; its error is above")


def identity(trial: dict) -> tuple[str, int, int]:
    """With the steps, so that a rehearsal is not taken for a run."""
    return trial["name"], trial["seed"], trial["steps"]


def chosen(names: str | None) -> list[Trial]:
    by_name = {trial.name: trial for trial in FACTORS}
    wanted = names.split(",") if names else list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise SystemExit(f"--only: no factor {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def work(data: Data, queue, out: Path) -> None:
    torch.set_num_threads(1)
    features = Features(data, torch.device("cpu"))
    known = {name: truths_of(getattr(data, name)) for name in ("synthetic", "test")}
    while (trial := queue.get()) is not None:
        x, tap_channels = features(trial)
        begin = time.time()
        network = train(trial, x["train"], data.train.classes, tap_channels)
        seconds = [time.time() - begin]
        ways = WAYS if (trial.name, trial.seed) == (BASE.name, 0) else (INVERSION,)
        found = {
            way: figures(sets, known, len(data.synthetic.images), locations=True)
            for way, sets in readings(data, network, x, ways)
        }
        seconds.append(time.time() - begin - seconds[0])
        line = {"trial": asdict(trial), "seconds": seconds, "read by": found}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{trial.name}, seed {trial.seed}, {sum(seconds):.0f} s: {cells(found[INVERSION])}", flush=True)


def readings(data: Data, network: DiT, x: dict[str, Tensor], ways: tuple[str, ...]) -> Iterator[tuple[str, Sets]]:
    """Distances from the nearest kept vectors of the class, of each way alone and of all together."""
    seen = {name: vectors(network, part, ways) for name, part in x.items()}
    classes = data.train.classes, torch.cat([data.synthetic.classes, data.test.classes])
    found = {}
    for way in ways:
        others = torch.cat([seen["synthetic"][way], seen["test"][way]])
        found[way] = distances(whitened(Sets(seen["train"][way], others, *classes)), side=1)
        yield way, found[way]
    if len(ways) > 1:
        scaled = [standardised(sets, locations=False) for sets in found.values()]
        yield "+".join(ways), scaled[0].of(sum(one.train for one in scaled), sum(one.others for one in scaled))


def table(lines: list[dict]) -> str:
    """Means over the seeds, with the deviation of the image AUROC from seed to seed."""
    rows = ["| what | seeds | synthetic: image / pixel AUROC / AUPRO | test |", "|---|---:|---|---|"]
    names = dict.fromkeys((line["trial"]["name"], way) for line in lines for way in line["read by"])
    for name, way in names:
        own = [line["read by"][way] for line in lines if line["trial"]["name"] == name and way in line["read by"]]
        title = name if way == INVERSION else f"{name}, {way}"
        rows.append(f"| {title} | {len(own)} | {' | '.join(over_seeds(own, split) for split in SPLITS)} |")
    return "\n".join(rows)


def over_seeds(found: list[dict], split: str) -> str:
    values = [[mean(one[split][measure]) for one in found] for measure in MEASURES]
    spread = f" (± {stdev(values[0]):.4f})" if len(found) > 1 else ""
    return " / ".join(f"{mean(one):.3f}" for one in values) + spread


def cells(found: dict) -> str:
    return "; ".join(f"{split} {over_seeds([found], split)}" for split in SPLITS)


if __name__ == "__main__":
    main()
