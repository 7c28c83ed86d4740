"""A dry run as tables for the terminal and as CSV."""

import csv
import io

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fmad_dist.stream.dry_run import DryRun

ALL_RANKS = 16  # more ranks are summed up by node
MANY_CLASSES = 60


def plan_overview(run: DryRun) -> RenderableType:
    ranks = _ranks(run) if run.layout.world_size <= ALL_RANKS else _summary(run)
    return Group(_facts(run), _mix(run), _nodes(run), ranks)


def plan_csv(run: DryRun) -> str:
    """One line per rank."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "node", "samples", "shards", "bytes", "first_sample"])
    for rank in range(run.layout.world_size):
        first = run.first_samples(rank, 1)
        numbers = [int(column[rank]) for column in (run.samples_per_rank, run.shards_per_rank, run.bytes_per_rank)]
        writer.writerow([rank, rank // run.gpus, *numbers, first[0] if first else ""])
    return buffer.getvalue()


def _facts(run: DryRun) -> Table:
    stored = {dataset.url: dataset.manifest for dataset in run.stream.mixture.datasets}
    num_bytes = sum(shard.num_bytes for manifest in stored.values() for shard in manifest.shards)
    facts = Table(show_header=False, box=None)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in (
        ("plan", run.stream.plan.digest),
        ("epoch", f"{run.epoch}: {run.stream.plan.epoch_size:,} samples, {run.steps:,.1f} optimizer steps"),
        ("held out", f"{len(run.stream.split.held_out):,} normals calibrate and never train"),
        ("ranks", f"{run.layout.world_size} = {run.nodes} nodes x {run.gpus}; --out writes what each reads"),
        ("batch", f"{run.layout.global_batch} = {run.layout.world_size} ranks x {run.layout.micro_batch} images"
            + (f" x {run.layout.accumulation} rounds" if run.layout.accumulation > 1 else "")),
        ("stored", f"{sum(len(m.shards) for m in stored.values())} shards, {megabytes(num_bytes)} with test images"),
        ("cache", f"{megabytes(run.cache_bytes_of_all_epochs)} per node hold every training image"),
    ):  # fmt: skip
        facts.add_row(name, escape(value))
    return facts


def _mix(run: DryRun) -> Table:
    """Per dataset, and per class if there are not too many: images, appearances per epoch and share."""
    table = Table(title="mix", title_justify="left", show_edge=False)
    for name in ("dataset/class", "images", "per epoch", "share %"):
        table.add_column(name, justify="left" if name.startswith("dataset") else "right")
    names, counts, quotas = run.stream.mixture.class_names, run.stream.class_counts, run.stream.plan.appearances
    datasets = [name.partition("/")[0] for name in names]
    for dataset in sorted(set(datasets)):
        own = np.array([found == dataset for found in datasets])
        table.add_row(f"[bold]{escape(dataset)}[/]", *_share(counts[own].sum(), quotas[own].sum(), quotas.sum()))
        for number in np.flatnonzero(own) if len(names) <= MANY_CLASSES else []:
            table.add_row(f"  {escape(names[number])}", *_share(counts[number], quotas[number], quotas.sum()))
    return table


def _share(count: int, quota: int, total: int) -> tuple[str, str, str]:
    return f"{count:,}", f"{quota:,}", f"{100 * quota / total:.2f}"


def _nodes(run: DryRun) -> Table:
    table = Table(title="nodes", title_justify="left", show_edge=False)
    for name in ("node", "distinct images", "% of all", "shards touched", "cache for this epoch"):
        table.add_column(name, justify="right")
    num_images = len(run.stream.plan.indices)
    for node in range(run.nodes):
        images = int(run.images_per_node[node])
        cells = (f"{images:,}", f"{100 * images / num_images:.1f}", f"{run.shards_per_node[node]:,}")
        table.add_row(str(node), *cells, megabytes(int(run.cache_bytes_per_node[node])))
    return table


def _ranks(run: DryRun) -> Table:
    table = Table(title="ranks", title_justify="left", show_edge=False)
    for name in ("rank", "samples", "shards", "bytes", "first samples"):
        table.add_column(name, justify="left" if name.startswith("first") else "right", overflow="fold")
    for rank in range(run.layout.world_size):
        cells = (f"{run.samples_per_rank[rank]:,}", f"{run.shards_per_rank[rank]:,}")
        num_bytes = megabytes(int(run.bytes_per_rank[rank]))
        table.add_row(str(rank), *cells, num_bytes, escape(", ".join(run.first_samples(rank))))
    return table


def _summary(run: DryRun) -> Table:
    table = Table(title=f"{run.layout.world_size} ranks", title_justify="left", show_edge=False)
    for name in ("per rank", "least", "mean", "most"):
        table.add_column(name, justify="left" if name == "per rank" else "right")
    for name, column in (("samples", run.samples_per_rank), ("shards", run.shards_per_rank)):
        table.add_row(name, f"{column.min():,}", f"{column.mean():,.1f}", f"{column.max():,}")
    sizes = run.bytes_per_rank
    table.add_row("bytes", *(megabytes(int(value)) for value in (sizes.min(), sizes.mean(), sizes.max())))
    return table


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
