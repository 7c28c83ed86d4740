"""The comparison as JSON, as a Markdown table and as a figure."""

import io
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fmad_dist.base.console import counted
from fmad_dist.base.world import World
from fmad_dist.comparison.choice import PEER_MARK
from fmad_dist.comparison.compared import Cost, Row, mean_speed
from fmad_dist.detector.files import DetectorSpec
from fmad_dist.metrics.results import Figures
from fmad_dist.networks.build import describe_network
from fmad_dist.report.benchmark import ComparedRow, Origin, benchmark_grids, measured_row, published_rows
from fmad_dist.report.grid import markdown
from fmad_dist.storage import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARISON_NAME = "comparison.json"
SHOWN = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}
FILES = (COMPARISON_NAME, "comparison.md", "comparison.png")
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


def write_comparison(
    rows: Sequence[Row], left_out: dict[str, str], spec: DetectorSpec, features: Sequence[Cost], world: World, out: str
) -> None:
    """Write FILES. `features` is the cost of what all scorers share, per process of every start; images/s are of one
    process and leave that and reading out."""
    facts = _facts(spec, features, world) | _peer_facts(rows)
    store = Store(out)
    body = {"facts": facts, "left_out": left_out, "scorers": {row.title: _values(row) for row in rows}}
    store.write(COMPARISON_NAME, json.dumps(body, indent=1, allow_nan=False).encode())
    store.write("comparison.md", _markdown(rows, left_out, facts).encode())
    store.write("comparison.png", draw(rows))
    print(_overview(rows), flush=True)


def read_comparison(out: str | Path) -> dict[str, Any]:
    """The content of `<out>/comparison.json`."""
    return json.loads(Store(out).read(COMPARISON_NAME))


def _facts(spec: DetectorSpec, features: Sequence[Cost], world: World) -> dict[str, str]:
    objective = spec.objective
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = f"{counted(os.cpu_count() or 1, 'core', 'cores')}, {platform.machine()}, 1 thread each"
    resumed = {"Speed": f"mean over the {len(features)} processes of all starts; it went on after a kill"}
    return {
        "Objective": f"path {objective.path}, coupling {objective.coupling}, a = {spec.coupling_strength:.3f}",
        "Network": describe_network(spec.network),
        "Features": f"{spec.features.backbone}, {_speed(mean_speed(features))} images/s per process",
        "Training": f"{spec.train_step} steps",
        "Protocol": spec.protocol.title,
        "Machine": f"{counted(world.size, 'process', 'processes')}, {gpu or cores}; torch {torch.__version__}",
    } | (resumed if len(features) > world.size else {})


def _peer_facts(rows: Sequence[Row]) -> dict[str, str]:
    """What a reader must know about the peers to compare them."""
    names = sorted({row.title.split()[0] for row in rows if PEER_MARK in row.title})
    return {"Peers": " ".join([PEER_NOTE, *(PEER_NOTES[name] for name in names)])} if names else {}


def _values(row: Row) -> dict[str, Any]:
    return {
        "evaluations": row.evaluations,
        "images_per_s": None if math.isnan(row.images_per_s) else row.images_per_s,
        "peak_mib": row.peak_bytes / 2**20,
        "mean": row.results.mean.metrics.by_name(),
        "datasets": {name: result.metrics.by_name() for name, result in row.results.datasets.items()},
        "classes": {name: result.metrics.by_name() for name, result in row.results.classes.items()},
    }


def _overview(rows: Sequence[Row]) -> str:
    lines = [["scorer", "evaluations", "images/s", "peak MiB", *SHOWN.values()]]
    for row in rows:
        cost = [str(row.evaluations), _speed(row.images_per_s), f"{row.peak_bytes / 2**20:.0f}"]
        lines.append([row.title, *cost, *_quality(row.results.mean)])
    return _pipe_table(lines)


def _quality(figures: Figures) -> list[str]:
    return [f"{figures.value(name):.3f}" for name in SHOWN]


def _speed(images_per_s: float) -> str:
    return "–" if math.isnan(images_per_s) else f"{images_per_s:.1f}"


def _pipe_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the header; numbers stand right."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def _markdown(rows: Sequence[Row], left_out: dict[str, str], facts: dict[str, str]) -> str:
    names = list(rows[0].results.classes)
    per_class = [[row.title, *(" / ".join(_quality(row.results.classes[name])) for name in names)] for row in rows]
    lines = ["# Scorers on one model", "", *(f"- {key}: {value}" for key, value in facts.items())]
    lines += ["", "Means over the classes; images/s and memory are of one process and of scoring alone.", ""]
    lines += [_overview(rows), "", "## Per class: I-AUROC / P-AUROC / AUPRO", ""]
    lines += [_pipe_table([["scorer", *names], *per_class])]
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
    return [markdown(grid) for grid in benchmark_grids(measured)]


def draw(rows: Sequence[Row]) -> bytes:
    """PNG: mean image AUROC and AUPRO over images/s of one process; a scorer without a measured speed is left out."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if not math.isnan(row.images_per_s)]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, (key, name) in zip(
        figure.subplots(1, 2), (("image_auroc", "mean image AUROC"), ("aupro", "mean AUPRO")), strict=True
    ):
        for number, row in enumerate(timed):
            value = getattr(row.results.mean.metrics, key)
            axis.scatter(row.images_per_s, value, s=50, marker="osD^vP*Xd<>h"[number % 12], label=row.title)
        axis.set(xscale="log" if timed else "linear", xlabel="images/s, scoring alone, one process", ylabel=name)
        if timed:
            _label_speeds(axis, [row.images_per_s for row in timed])
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _label_speeds(axis: "Axes", speeds: Sequence[float]) -> None:
    """Plain numbers on a logarithmic axis, which has room for several of 1, 2, 5, 10, ... or of 1, 10, 100, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xlim(min(speeds) / 2, 2 * max(speeds))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(speeds) < 100 * min(speeds) else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
