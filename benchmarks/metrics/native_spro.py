"""AU-sPRO at the size of the source images: time, memory and error against exact, beside AU-sPRO on the map.

    python benchmarks/metrics/native_spro.py --out benchmarks/metrics

One class of 30 smooth noise maps of 256 x 256 for images of 1600 x 1280 pixels, as breakfast_box of MVTec LOCO AD has
them, every third one normal. The exact side keeps every native pixel and sorts once. Writes native_spro.json and
native_spro.md.
"""

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from scipy import ndimage

from fmad_dist.config.protocol import Protocol
from fmad_dist.evaluation.labelled_images import saturation_pixels
from fmad_dist.images.masks import mask_on_map
from fmad_dist.metrics.curves import Curve, pro_curve
from fmad_dist.metrics.histogram import KEY_BITS, MapPixels, PixelHistogram
from fmad_dist.metrics.regions import REGION_UNIT, Channel, SingleDefects, at_size, saturated_regions
from fmad_dist.stream.manifest import DefectSaturation

NUM_MAPS, SIZE, HEIGHT, WIDTH, SEED = 30, 256, 1280, 1600, 0
LIMITS = (0.05, 0.01, 0.3)
HALF = DefectSaturation(defect_name="", pixel_value=1, saturation_threshold=0.5, relative_saturation=True)


@dataclass(frozen=True, slots=True)
class Row:
    """Where it was measured: CPU milliseconds per image, MB of the state, areas by limit, their error and its bound."""

    size: str
    ms_per_image: float
    state_mb: float
    areas: tuple[float, ...]
    errors: tuple[float, ...]
    bounds: tuple[float, ...]


def make_images() -> list[tuple[np.ndarray, SingleDefects, SingleDefects]]:
    """Each map float32 [SIZE, SIZE], its defects at native size and what remains of them on the map."""
    rng, images = np.random.default_rng(SEED), []
    for number in range(NUM_MAPS):
        anomaly_map = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 3) * 8
        native, small = [], []
        for _ in range(int(rng.integers(1, 3)) if number % 3 else 0):
            mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
            (top, left), (height, width) = rng.integers(50, 900, 2), rng.integers(8, 300, 2)
            mask[top : top + height, left : left + width] = True
            on_map = mask_on_map([mask], SIZE)
            anomaly_map += 2 * ndimage.gaussian_filter(on_map.astype(float), 2)
            native.append(Channel(mask, saturation_pixels(HALF, int(mask.sum()), 1.0)))
            if on_map.any():
                small.append(Channel(on_map, saturation_pixels(HALF, int(on_map.sum()), 1.0)))
        truth = (SingleDefects(tuple(native), HEIGHT, WIDTH, True), SingleDefects(tuple(small), SIZE, SIZE, False))
        images.append((anomaly_map.astype(np.float32), *truth))
    return images


def measure(name: str, images: list[tuple[np.ndarray, SingleDefects]]) -> Row:
    start = time.process_time()
    histogram = PixelHistogram(Protocol().histogram_bins)
    for anomaly_map, defects in images:
        histogram.add(MapPixels.of_defects(at_size(anomaly_map, defects.height, defects.width), defects))
    histogram.settle()
    spent, curve, reference = time.process_time() - start, pro_curve(histogram), exact(images)
    areas = tuple(curve.area(limit) for limit in LIMITS)
    errors = tuple(abs(area - reference.area(limit)) for area, limit in zip(areas, LIMITS, strict=True))
    bounds = tuple(0.0 if histogram.bits == KEY_BITS else curve.largest_tie(limit) for limit in LIMITS)
    return Row(name, 1e3 * spent / len(images), histogram.bins.num_bytes / 1e6, areas, errors, bounds)


def exact(images: list[tuple[np.ndarray, SingleDefects]]) -> Curve:
    """The curve through every distinct score, from one sort of all pixels."""
    scores, normal, weights = [], [], []
    for anomaly_map, defects in images:
        stretched, union = at_size(anomaly_map, defects.height, defects.width), defects.union()
        own = np.zeros(union.shape)
        own[union] = saturated_regions(stretched, union, defects.channels).weights / REGION_UNIT
        scores.append(stretched.ravel())
        normal.append(~union.ravel())
        weights.append(own.ravel())
    every = np.concatenate(scores)
    order = np.argsort(every)[::-1]
    last = np.append(np.flatnonzero(np.diff(every[order])), every.size - 1)
    false = np.cumsum(np.concatenate(normal)[order])[last]
    found = np.cumsum(np.concatenate(weights)[order])[last]
    return Curve(np.append(0.0, false / false[-1]), np.append(0.0, found / found[-1]))


def environment() -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} cores CPU, one thread",
        "versions": f"python {platform.python_version()}, numpy {np.__version__}, Pillow {PIL.__version__}",
        "data": f"{NUM_MAPS} maps of {SIZE} x {SIZE} for images of {WIDTH} x {HEIGHT}, seed {SEED}",
        "load": f"{os.getloadavg()[0]:.1f} over the last minute at the start; times are CPU time",
    }


def markdown(rows: list[Row], facts: dict[str, str]) -> str:
    lines = ["# AU-sPRO at the size of the images and on the map", ""]
    lines += ["Written by `python benchmarks/metrics/native_spro.py --out benchmarks/metrics`.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    limits = " | ".join(f"AU-sPRO {limit:g} | error | its bound" for limit in LIMITS)
    lines += ["", f"| measured | ms per image | state MB | {limits} |", "|---" * (3 + 3 * len(LIMITS)) + "|"]
    for row in rows:
        found = zip(row.areas, row.errors, row.bounds, strict=True)
        areas = " | ".join(f"{area:.4f} | {error:.0e} | {bound:.0e}" for area, error, bound in found)
        lines.append(f"| {row.size} | {row.ms_per_image:.1f} | {row.state_mb:.1f} | {areas} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out, facts, images = parser.parse_args().out, environment(), make_images()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    native = PixelHistogram(Protocol().histogram_bins)
    for anomaly_map, defects, _ in images[:8]:
        native.add(MapPixels.of_defects(at_size(anomaly_map, defects.height, defects.width), defects))
    native.settle()
    facts["memory"] = f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3:.0f} MB more at the peak"
    rows = [
        measure(f"{WIDTH} x {HEIGHT}", [(one, defects) for one, defects, _ in images]),
        measure(f"{SIZE} x {SIZE}", [(one, defects) for one, _, defects in images]),
    ]
    text = json.dumps({"environment": facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    (out / "native_spro.json").write_text(text)
    (out / "native_spro.md").write_text(markdown(rows, facts))
    print(markdown(rows, facts))


if __name__ == "__main__":
    main()
