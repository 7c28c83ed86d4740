"""What the five categories allow: figures by kind of defect, and a probe of the features that is told the defects.

    python benchmarks/quality/limits.py --detector RUN/detector --source ../shared/data --out limits.json

By kind: latents by their nearest kept one, as reading.py measures them; image AUROC against the normal test images,
pixel AUROC against all normal pixels, and the kind's share of the defect pixels of its category. The probe is a small
network on the features of one location, trained with the masks of one half of the *test* images and measured on the
other half, in turns. It is no detector, for it sees what none may see: it tells what the features know of the defects.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "sweep"))
from images import CATEGORIES, load, test_paths
from measures import Truth, auroc, smoothed, top
from reading import SIDE, Sets, distances, looked_at, standardised, truths_of, whitened

from fmad_dist.base.console import Progress
from fmad_dist.detector.detector import Detector

STEPS, BATCH = 1500, 2048
PROBES = {"linear": 0, "256 hidden units": 256}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, help="of a scorer `deviation`, whose part is read")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("limits.json"))
    parser.add_argument("--processes", type=int, default=2, help="that read images")
    arguments = parser.parse_args()
    data = load(arguments.source, arguments.processes)
    detector = Detector.load(arguments.detector)
    looks = [looked_at(detector, split) for split in (data.train, data.test)]
    known = truths_of(data.test)
    latents = Sets(looks[0][1], looks[1][1], data.train.classes, data.test.classes)
    found = {"kinds": kinds(distances(whitened(latents), 1), known, arguments.source), "probes": {}}
    with Progress("probes", len(PROBES) * len(known)) as progress:
        for name, hidden in PROBES.items():
            found["probes"][name] = {}
            for category, truth in zip(CATEGORIES, known, strict=True):
                found["probes"][name][category] = probed(looks[1][0][truth.rows].float(), truth, hidden)
                progress.advance(1)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


def kinds(scores: Sets, known: list[Truth], root: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Category -> kind of defect -> figures."""
    judging, shown = (standardised(scores, places).others for places in (True, False))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for category, truth in zip(CATEGORIES, known, strict=True):
        names = [path.parent.name for path in test_paths(root, category)]
        images = top(smoothed(judging[truth.rows], SIDE, 0.0), 1.0)
        maps = smoothed(shown[truth.rows], SIDE, 0.0)
        normal = maps[~truth.masks]
        found[category] = {}
        for kind in sorted({*names} - {"good"}):
            own = torch.tensor([name == kind for name in names])
            compared = own | ~truth.anomalous
            defect = maps[own][truth.masks[own]]
            pixels = torch.cat([defect, normal])
            found[category][kind] = {
                "images": int(own.sum()),
                "share of pixels": len(defect) / int(truth.masks.sum()),
                "image": auroc(images[compared], truth.anomalous[compared]),
                "pixel": auroc(pixels, torch.arange(len(pixels)) < len(defect)),
            }
    return found


def probed(features: Tensor, truth: Truth, hidden: int) -> float:
    """Pixel AUROC of a probe of the features [N, C, G, G] of a category's test images."""
    wanted = F.adaptive_avg_pool2d(truth.masks[:, None].float(), features.shape[2:])[:, 0]
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    grids = torch.empty_like(wanted)
    for half in (0, 1):
        seen, new = order[half::2], order[1 - half :: 2]
        probe = trained(rows(features[seen]), wanted[seen].flatten(), hidden)
        with torch.no_grad():
            grids[new] = probe(rows(features[new])).view(len(new), *grids.shape[1:])
    return auroc(smoothed(grids, SIDE, 0.0), truth.masks)


def rows(features: Tensor) -> Tensor:
    """[N, C, G, G] -> [N G G, C]."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def trained(values: Tensor, wanted: Tensor, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(values.shape[1], affine=False), *layers(values.shape[1], hidden))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(STEPS):
        chosen = torch.randint(len(values), (BATCH,))
        loss = F.binary_cross_entropy_with_logits(network(values[chosen])[:, 0], wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def layers(channels: int, hidden: int) -> Iterator[nn.Module]:
    if hidden:
        yield from (nn.Linear(channels, hidden), nn.GELU())
    yield nn.Linear(hidden or channels, 1)


def table(found: dict) -> Iterator[str]:
    yield "| category | defect | images | share of the defect pixels | image AUROC | pixel AUROC |"
    yield "|---|---|---:|---:|---:|---:|"
    for category, by_kind in found["kinds"].items():
        for kind, one in by_kind.items():
            share = f"{one['share of pixels']:.2f}"
            yield f"| {category} | {kind} | {one['images']} | {share} | {one['image']:.3f} | {one['pixel']:.3f} |"
    yield "\n| probe, told the defects | " + " | ".join(CATEGORIES) + " | mean |"
    yield "|---|" + "---:|" * (len(CATEGORIES) + 1)
    for name, by_category in found["probes"].items():
        values = list(by_category.values())
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in [*values, sum(values) / len(values)]) + " |"


if __name__ == "__main__":
    main()
