"""What helps a flow on features to find defects: controlled runs, many in minutes on one GPU.

    python benchmarks/quality/sweep/sweep.py --source ../shared/data --out sweep.jsonl --plan first

Every line of the output is a trial: its settings, and per way of scoring the measures on the test split and on held-out
normals with synthetic defects, which is what may choose. `scores.py` has the ways of scoring.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from images import CATEGORIES, Data, load
from measures import measure, truths
from plans import PLANS
from scores import Categories, Gaussians, Locations, nearest, squares, vectors
from torch import Tensor
from training import Trial, train

from fmad_dist.features.backbones import FeatureSpec, load_backbone

PERCENTS = (0.1, 0.3, 1.0, 3.0)
SIDE = 128  # of the maps that are measured: every second pixel of a mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", choices=sorted(PLANS), default="first")
    parser.add_argument("--seconds", type=float, default=1e9, help="no trial begins later")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the GPU")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of all trials, for a rehearsal")
    options = parser.parse_args()
    start = time.time()
    data = load(options.source, options.readers)
    print(f"{time.time() - start:.0f} s: {[len(split.images) for split in vars(data).values()]} images", flush=True)
    trials = [replace(trial, steps=max(2, round(trial.steps * options.scale))) for trial in PLANS[options.plan]]
    context = get_context("spawn")
    queue = context.Queue()
    for trial in trials:
        queue.put(trial)
    for _ in range(options.workers):
        queue.put(None)
    arguments = (data, queue, options.out, start + options.seconds)
    workers = [context.Process(target=work, args=arguments) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def work(data: Data, queue, out: Path, end: float) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(data, device)
    while (trial := queue.get()) is not None:
        if time.time() > end:
            continue
        try:
            line = bench.run(trial)
        except Exception as error:  # a trial that fails must not end the others
            line = {"trial": asdict(trial), "error": repr(error)[:500]}
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(summary(line), flush=True)


class Features:
    """Whitened float16 features by split, and the channels of each tap; kept by their settings."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self.data, self.device = data, device
        self.known: dict[tuple, tuple[dict[str, Tensor], tuple[int, ...]]] = {}

    def __call__(self, trial: Trial) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        key = (trial.backbone, trial.taps, trial.grid, trial.average, trial.whitening)
        if key not in self.known:
            spec = FeatureSpec(trial.backbone, trial.taps, trial.grid, 256)
            backbone = load_backbone(spec).to(self.device)
            raw = {
                name: torch.cat([backbone(part.to(self.device)) for part in split.images.split(64)])
                for name, split in vars(self.data).items()
            }
            if trial.average:
                raw = {
                    name: F.avg_pool2d(F.pad(x.float(), (1,) * 4, "replicate"), 3, 1).half() for name, x in raw.items()
                }
            self.known[key] = whitened(raw, trial, backbone.tap_channels), backbone.tap_channels
        return self.known[key]


class Bench:
    """Data and features on the device, and measures of trials."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self.data, self.device = data, device
        self.features = Features(data, device)
        self.classes = {name: split.classes.to(device) for name, split in vars(data).items()}
        self.truths = {
            name: truths(s.masks[:, ::2, ::2], s.classes, device) for name, s in vars(data).items() if name != "train"
        }

    def run(self, trial: Trial) -> dict:
        begin = time.time()
        x, tap_channels = self.features(trial)
        ready = time.time()
        found: dict[str, dict] = {}
        if trial.steps <= 2 and trial.name.startswith("bank"):
            self.references(trial, x, found)
            return {"trial": asdict(trial), "seconds": [ready - begin, 0, time.time() - ready], "found": found}
        network = train(trial, x["train"], self.classes["train"], tap_channels)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        trained = time.time()
        seen = {name: vectors(network, part) for name, part in x.items()}
        plain, located = {}, {}
        for way in seen["train"]:
            grids = {name: squares(of[way]) for name, of in seen.items()}
            gaussian = Gaussians(seen["train"][way], self.classes["train"])
            distances = {name: gaussian.distance(of[way], self.classes[name]) for name, of in seen.items()}
            for suffix, values in (("", grids), ("+cov", distances)):
                plain[way + suffix] = self._all(Categories, values)
                located[way + suffix] = self._all(Locations, values)
                self.note(found, way + suffix, values)
                self.note(found, f"{way}{suffix}+loc", located[way + suffix])
        for group in (("inversion3", "residual0.7"), ("endpoint+cov", "residual0.7+cov"), ("endpoint", "residual0.85")):
            for kind, source in (("", plain), ("+loc", located)):
                mixed = {name: sum(source[way][name] for way in group) for name in x}
                self.note(found, "|".join(group) + kind, mixed)
        seconds = [ready - begin, trained - ready, time.time() - trained]
        return {"trial": asdict(trial), "seconds": seconds, "found": found}

    def references(self, trial: Trial, x: dict[str, Tensor], found: dict) -> None:
        """Without a flow: nearest neighbours in a bank, and one Gaussian per category."""
        gaussian = Gaussians(x["train"], self.classes["train"])
        distances = {name: gaussian.distance(part, self.classes[name]) for name, part in x.items()}
        self.note(found, "gaussian", distances)
        self.note(found, "gaussian+loc", self._all(Locations, distances))
        rows = x["train"].permute(0, 2, 3, 1).reshape(-1, x["train"].shape[1])
        generator = torch.Generator().manual_seed(0)
        bank = rows[torch.randperm(len(rows), generator=generator)[: min(20_000, len(rows))].to(rows.device)].float()
        near = {name: nearest(part, bank) for name, part in x.items()}
        self.note(found, "bank", near)
        self.note(found, "bank+loc", self._all(Locations, near))

    def _all(self, kind, grids: dict[str, Tensor]) -> dict[str, Tensor]:
        fitted = kind(grids["train"], self.classes["train"])
        return {name: fitted.standardised(values, self.classes[name]) for name, values in grids.items()}

    def note(self, found: dict, way: str, grids: dict[str, Tensor]) -> None:
        for sigma in (0.0, 2.0):
            found[f"{way} blur{sigma:g}"] = {
                name: measure(grids[name], self.truths[name], SIDE, sigma, PERCENTS) for name in self.truths
            }


def whitened(raw: dict[str, Tensor], trial: Trial, tap_channels: tuple[int, ...]) -> dict[str, Tensor]:
    train = raw["train"].float()
    mean = train.mean((0, 2, 3), keepdim=True)
    std = train.std((0, 2, 3), keepdim=True)
    scaled = {name: (x.float() - mean) / std.clamp_min(1e-3 * std.median()) for name, x in raw.items()}
    if trial.whitening == "channel":
        return {name: x.half() for name, x in scaled.items()}
    groups = tap_channels if trial.whitening == "tap_pca" else (sum(tap_channels),)
    parts = {name: x.split(list(groups), 1) for name, x in scaled.items()}
    out: dict[str, list[Tensor]] = {name: [] for name in raw}
    for number in range(len(groups)):
        rows = parts["train"][number].permute(0, 2, 3, 1).flatten(0, 2)
        values, directions = torch.linalg.eigh(torch.cov(rows.T))
        scale = (values + 0.01 * values.mean()).rsqrt()
        for name in raw:
            out[name].append(torch.einsum("ncxy,cd->ndxy", parts[name][number], directions * scale))
    return {name: torch.cat(some, 1).half() for name, some in out.items()}


def summary(line: dict) -> str:
    name = line["trial"]["name"]
    if "error" in line:
        return f"{name}: {line['error']}"
    rows = []
    for way, splits in line["found"].items():
        test = {key: sum(values) / len(values) for key, values in splits["test"].items()}
        best = max(key for key in test if key.startswith("image"))
        image = {key: value for key, value in test.items() if key.startswith("image")}
        best = max(image, key=lambda key: image[key])
        rows.append((image[best], f"{way} {best} {image[best]:.3f} p {test['pixel']:.3f} pro {test['aupro']:.3f}"))
    rows.sort(reverse=True)
    times = "/".join(f"{second:.0f}" for second in line["seconds"])
    return f"{name} [{times} s]: " + "; ".join(text for _, text in rows[:2])


if __name__ == "__main__":
    assert len(CATEGORIES) == 5
    main()
