"""The comparison as JSON, as a Markdown table and as a figure."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fmad_dist.comparison.peers import PEER_MARK
from fmad_dist.detector_files import DetectorSpec
from fmad_dist.evaluation.report.benchmark import benchmark_grids, benchmark_tables, measured_row
from fmad_dist.evaluation.report.grid import markdown
from fmad_dist.evaluation.report.published import ComparedRow, Origin, published_rows
from fmad_dist.evaluation.results import Metrics, Results
from fmad_dist.networks.build import describe_network
from fmad_dist.storage import Store
from fmad_dist.wording import counted
from fmad_dist.world import World

COMPARISON_NAME = "comparison.json"
FILES = (COMPARISON_NAME, "comparison.md", "comparison.png")
SHOWN = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}
PEER_NOTE = (
    "A peer is a method of others, trained for this comparison on the same features of the same training normals."
)
PEER_NOTES = {
    "bank": "bank, one memory bank per class, is told the class of every test image, which no other row is, and needs "
    "no network.",
    "bank_pooled": "bank_pooled is one memory bank for all classes, is not told the class and needs no network.",
    "cflow": "cflow has a network of its own, which its evaluations are of, and unless its steps are given it saw the "
    "same samples in the same order as the model.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One scorer: network evaluations per image, images/s and peak memory of its part alone, and its results. With one
    batch per process there is no speed, because it warms up, and images/s are NaN."""

    title: str
    evaluations: int
    images_per_s: float
    peak_bytes: int
    results: Results


def write_comparison(
    rows: Sequence[Row],
    left_out: dict[str, str],
    spec: DetectorSpec,
    features_per_s: float,
    world: World,
    out: Path,
) -> None:
    """`images_per_s` is of one process and leaves out reading and features, which all scorers share."""
    from fmad_dist.comparison.figure import draw

    facts = _facts(spec, features_per_s, world) | _peer_facts(rows)
    store = Store(out)
    body = {"facts": facts, "left_out": left_out, "scorers": {row.title: _values(row) for row in rows}}
    store.write(COMPARISON_NAME, json.dumps(body, indent=1, allow_nan=False).encode())
    store.write("comparison.md", _markdown(rows, left_out, facts).encode())
    store.write("comparison.png", draw(rows))
    print(_overview(rows))
    print(f"comparison: {out / 'comparison.md'}")


def _facts(spec: DetectorSpec, features_per_s: float, world: World) -> dict[str, str]:
    objective = spec.objective
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = f"{counted(os.cpu_count() or 1, 'core', 'cores')}, {platform.machine()}, 1 thread each"
    return {
        "Objective": f"path {objective.path}, coupling {objective.coupling}, a = {spec.coupling_strength:.3f}",
        "Network": describe_network(spec.network),
        "Features": f"{spec.features.backbone}, {_speed(features_per_s)} images/s per process",
        "Training": f"{spec.train_step} steps",
        "Protocol": spec.protocol.title,
        "Machine": f"{counted(world.size, 'process', 'processes')}, {gpu or cores}; torch {torch.__version__}",
    }


def _peer_facts(rows: Sequence[Row]) -> dict[str, str]:
    """What a reader must know about the peers to compare them."""
    names = sorted({row.title.split()[0] for row in rows if PEER_MARK in row.title})
    return {"Peers": " ".join([PEER_NOTE, *(PEER_NOTES[name] for name in names)])} if names else {}


def _values(row: Row) -> dict[str, Any]:
    return {
        "evaluations": row.evaluations,
        "images_per_s": _known(row.images_per_s),
        "peak_mib": row.peak_bytes / 2**20,
        "mean": _finite(row.results.mean.metrics),
        "datasets": {name: _finite(result.metrics) for name, result in row.results.datasets.items()},
        "classes": {name: _finite(result.metrics) for name, result in row.results.classes.items()},
    }


def _finite(metrics: Metrics) -> dict[str, float | None]:
    return {key: _known(value) for key, value in asdict(metrics).items()}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _overview(rows: Sequence[Row]) -> str:
    lines = ["| scorer | evaluations | images/s | peak MiB | " + " | ".join(SHOWN.values()) + " |"]
    lines.append("|---|" + "---:|" * (3 + len(SHOWN)))
    for row in rows:
        cells = [row.title, str(row.evaluations), _speed(row.images_per_s), f"{row.peak_bytes / 2**20:.0f}"]
        cells += [f"{getattr(row.results.mean.metrics, key):.3f}" for key in SHOWN]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(images_per_s: float) -> str:
    return "–" if math.isnan(images_per_s) else f"{images_per_s:.1f}"


def _markdown(rows: Sequence[Row], left_out: dict[str, str], facts: dict[str, str]) -> str:
    lines = ["# Scorers on one model", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "Means over the classes; images/s and memory are of one process and of scoring alone.", ""]
    lines += [_overview(rows), "", "## Per class: I-AUROC / P-AUROC / AUPRO", ""]
    names = list(rows[0].results.classes)
    lines += ["| scorer | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        classes = row.results.classes
        cells = [" / ".join(f"{getattr(classes[name].metrics, key):.3f}" for key in SHOWN) for name in names]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    if left_out:
        lines += ["", "## Left out", ""] + [f"- {name}: {reason}." for name, reason in left_out.items()]
    return "\n".join([*lines, "", *_beside_published(rows)])


def _beside_published(rows: Sequence[Row]) -> list[str]:
    """A table for every dataset about which something is published."""
    measured: dict[str, list[ComparedRow]] = {}
    for row in rows:
        origin: Origin = "peer" if PEER_MARK in row.title else "ours"
        for dataset, mean in row.results.datasets.items():
            if published_rows(dataset):
                found = measured_row(dataset, mean, row.results.protocol.title, row.title, origin)
                measured.setdefault(dataset, []).append(found)
    return [markdown(grid) for grid in benchmark_grids(benchmark_tables(measured))]
