"""Ways to read one trained flow, and its features without it: Gaussians of a class, and memories of normal vectors.

    python benchmarks/quality/reading.py --detector RUN/detector --source ../shared/data --out reading.json

`--source` holds the five categories of shared_small.py. Each way is fitted to training normals and measured on held-out
normals with synthetic defects, which may choose, and on the test images, which may not; maps of 128 px, image score =
mean of the top 1 % pixels. "+ places" judges images on the scale that scores have at each place on training normals.
Classes are told here (`fmad` infers them), so that nothing but the reading differs. The flow itself was trained on most
of these held-out normals, for `fmad` holds out others; the memories and Gaussians were not made of them.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "sweep"))
from images import CATEGORIES, Split, load
from measures import Truth, measure, truths
from scores import Categories, Locations

from fmad_dist.base.console import Progress
from fmad_dist.detector.detector import Detector
from fmad_dist.scoring.deviation import gaussian
from fmad_dist.scoring.memory import nearest, remember

SIDE = 128
KEPT = 4096  # vectors per class, as `deviation` keeps by default


@dataclass(frozen=True)
class Sets:
    """The same of training images and of others, [N, C, G, G] or [N, G, G], and their classes."""

    train: Tensor
    others: Tensor  # that are measured: here held-out normals with synthetic defects, then test images
    train_classes: Tensor
    other_classes: Tensor

    def rows(self, number: int) -> tuple[Tensor, Tensor]:
        return (self.train_classes == number).nonzero()[:, 0], (self.other_classes == number).nonzero()[:, 0]

    def of(self, train: Tensor, others: Tensor) -> "Sets":
        return Sets(train, others, self.train_classes, self.other_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, help="of a scorer `deviation`, whose part is read")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("reading.json"))
    parser.add_argument("--processes", type=int, default=2, help="that read images")
    arguments = parser.parse_args()
    data = load(arguments.source, arguments.processes)
    detector = Detector.load(arguments.detector)
    looks = [looked_at(detector, split) for split in (data.train, data.synthetic, data.test)]
    classes = (data.train.classes, torch.cat([data.synthetic.classes, data.test.classes]))
    features, latents = (Sets(one[0], torch.cat(one[1:]), *classes) for one in zip(*looks, strict=True))
    known = {name: truths_of(getattr(data, name)) for name in ("synthetic", "test")}
    found = {
        name: figures(sets, known, len(data.synthetic.images), locations)
        for name, sets, locations in ways(features, whitened(latents))
    }
    facts = {"backbone": detector.spec.features.backbone, "steps": detector.spec.train_step, "kept": KEPT}
    arguments.out.write_text(json.dumps({**facts, "categories": CATEGORIES, "ways": found}, indent=1) + "\n")
    print(table(found))


def truths_of(split: Split) -> list[Truth]:
    masks = F.interpolate(split.masks[:, None].float(), size=(SIDE, SIDE), mode="nearest")[:, 0] > 0
    return truths(masks, split.classes, torch.device("cpu"))


@torch.inference_mode()
def looked_at(detector: Detector, split: Split) -> tuple[Tensor, Tensor]:
    """Whitened features and latents of all images, float16 [N, C, G, G] each."""
    found = []
    with Progress("features and latents", len(split.images)) as progress:
        for part in split.images.split(16):
            x = detector.features(part)
            found.append((x.half(), detector.scorer.part.vectors(detector.field, x).half()))
            progress.advance(len(part))
    features, latents = zip(*found, strict=True)
    return torch.cat(features), torch.cat(latents)


def ways(features: Sets, latents: Sets) -> Iterator[tuple[str, Sets, bool]]:
    """Name, scores, and whether places count."""
    squares = latents.of(latents.train.square().mean(1), latents.others.square().mean(1))
    found = {"latents, Gaussian": squares}
    for name, sets in (("features", features), ("latents", latents)):
        for side in (1, 3):
            found[f"{name}, nearest" + (", 3 x 3" if side == 3 else "")] = distances(sets, side)
    both = [standardised(found[name], True) for name in ("latents, Gaussian", "features, nearest")]
    for name, sets in found.items():
        yield name, sets, False
        yield f"{name} + places", sets, True
    yield (
        "latents, Gaussian + features, nearest + places",
        both[0].of(both[0].train, both[0].others + both[1].others),
        True,
    )


def whitened(sets: Sets) -> Sets:
    """By mean and covariance of the class."""
    train, others = sets.train.float(), sets.others.float()
    for number in range(len(CATEGORIES)):
        own = sets.rows(number)
        mean, root = gaussian(sets.train[own[0]])
        for values, rows in zip((train, others), own, strict=True):
            values[rows] = torch.einsum("cd,ndhw->nchw", root, values[rows] - mean[:, None, None])
    return sets.of(train, others)


def distances(sets: Sets, side: int) -> Sets:
    """From the nearest kept vectors of the class, averaged over side x side locations before."""
    train, others = (values.new_empty(values[:, 0].shape, dtype=torch.float32) for values in (sets.train, sets.others))
    for number in range(len(CATEGORIES)):
        seen, new = sets.rows(number)
        vectors = pooled(sets.train[seen], side)
        memory, scores = remember(list(vectors.flatten(2)), KEPT)
        train[seen] = scores.view(len(seen), *train.shape[1:])
        for row in new.tolist():
            vector = pooled(sets.others[row : row + 1], side)[0].flatten(1).T
            others[row] = nearest(vector, memory).view(others.shape[1:])
    return sets.of(train, others)


def pooled(values: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(values.float(), side, stride=1, padding=side // 2, count_include_pad=False)


def standardised(sets: Sets, locations: bool) -> Sets:
    kind = Locations if locations else Categories
    scale = kind(sets.train, sets.train_classes)
    train, others = (
        scale.standardised(values, classes)
        for values, classes in ((sets.train, sets.train_classes), (sets.others, sets.other_classes))
    )
    return sets.of(train, others)


def figures(
    sets: Sets, known: dict[str, list[Truth]], num_synthetic: int, locations: bool
) -> dict[str, dict[str, list[float]]]:
    """Of each category: image AUROC, and of maps on the scale of the class pixel AUROC and AUPRO."""
    judging, shown = (standardised(sets, by).others for by in (locations, False))
    found = {}
    for name, rows in (("synthetic", slice(num_synthetic)), ("test", slice(num_synthetic, None))):
        images, maps = (measure(grids[rows], known[name], SIDE, 0.0, (1.0,)) for grids in (judging, shown))
        found[name] = {"image": images["image@1"], "pixel": maps["pixel"], "aupro": maps["aupro"]}
    return found


def table(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    lines = ["| read by | synthetic: image / pixel AUROC / AUPRO | test |", "|---|---|---|"]
    for name, splits in found.items():
        cells = (" / ".join(f"{sum(one) / len(one):.3f}" for one in values.values()) for values in splits.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
