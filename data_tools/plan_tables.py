"""What the ranks read in an epoch, as tables for the terminal and as CSV."""

import csv
import io

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from data_tools.dataset_tables import facts_table, titled_table
from fmad_dist.stream.epoch_reads import EpochReads

ALL_RANKS = 16  # more ranks are summed up by node
MANY_CLASSES = 60


def plan_overview(reads: EpochReads) -> RenderableType:
    """Facts, mix of classes, nodes and ranks of one epoch."""
    ranks = _ranks(reads) if reads.layout.world_size <= ALL_RANKS else _summary(reads)
    return Group(_facts(reads), _mix(reads), _nodes(reads), ranks)


def plan_csv(reads: EpochReads) -> str:
    """One line per rank."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "node", "samples", "shards", "bytes", "first_sample"])
    for rank in range(reads.layout.world_size):
        first = reads.first_samples(rank, 1)
        numbers = [
            int(column[rank]) for column in (reads.samples_per_rank, reads.shards_per_rank, reads.bytes_per_rank)
        ]
        writer.writerow([rank, rank // reads.gpus, *numbers, first[0] if first else ""])
    return buffer.getvalue()


def _facts(reads: EpochReads) -> Table:
    stored = {dataset.url: dataset.manifest for dataset in reads.stream.mixture.datasets}
    num_bytes = sum(shard.num_bytes for manifest in stored.values() for shard in manifest.shards)
    return facts_table((
        ("plan", reads.stream.plan.digest),
        ("epoch", f"{reads.epoch}: {reads.stream.plan.epoch_size:,} samples, {reads.steps:,.1f} optimizer steps"),
        ("held out", f"{len(reads.stream.split.held_out):,} normals calibrate and never train"),
        ("ranks", f"{reads.layout.world_size} = {reads.nodes} nodes x {reads.gpus}; --out writes what each reads"),
        ("batch", f"{reads.layout.global_batch} = {reads.layout.world_size} ranks x {reads.layout.micro_batch} images"
            + (f" x {reads.layout.accumulation} rounds" if reads.layout.accumulation > 1 else "")),
        ("stored", f"{sum(len(m.shards) for m in stored.values())} shards, {megabytes(num_bytes)} with test images"),
        ("cache", f"{megabytes(reads.cache_bytes_of_all_epochs)} per node hold every training image"),
    ))  # fmt: skip


def _mix(reads: EpochReads) -> Table:
    """Per dataset, and per class if there are not too many: images, appearances per epoch and share."""
    table = titled_table("mix", ("dataset/class", "images", "per epoch", "share %"), left=("dataset/class",))
    names, counts, quotas = reads.stream.mixture.class_names, reads.stream.class_counts, reads.stream.plan.appearances
    datasets = [name.partition("/")[0] for name in names]
    for dataset in sorted(set(datasets)):
        own = np.array([found == dataset for found in datasets])
        table.add_row(f"[bold]{escape(dataset)}[/]", *_share(counts[own].sum(), quotas[own].sum(), quotas.sum()))
        for number in np.flatnonzero(own) if len(names) <= MANY_CLASSES else []:
            table.add_row(f"  {escape(names[number])}", *_share(counts[number], quotas[number], quotas.sum()))
    return table


def _share(count: int, quota: int, total: int) -> tuple[str, str, str]:
    return f"{count:,}", f"{quota:,}", f"{100 * quota / total:.2f}"


def _nodes(reads: EpochReads) -> Table:
    columns = ("node", "distinct images", "% of all", "shards touched", "cache for this epoch")
    table = titled_table("nodes", columns, left=())
    num_images = len(reads.stream.plan.rows)
    for node in range(reads.nodes):
        images = int(reads.images_per_node[node])
        cells = (f"{images:,}", f"{100 * images / num_images:.1f}", f"{reads.shards_per_node[node]:,}")
        table.add_row(str(node), *cells, megabytes(int(reads.cache_bytes_per_node[node])))
    return table


def _ranks(reads: EpochReads) -> Table:
    table = titled_table("ranks", ("rank", "samples", "shards", "bytes", "first samples"), left=("first samples",))
    for rank in range(reads.layout.world_size):
        cells = (f"{reads.samples_per_rank[rank]:,}", f"{reads.shards_per_rank[rank]:,}")
        num_bytes = megabytes(int(reads.bytes_per_rank[rank]))
        table.add_row(str(rank), *cells, num_bytes, escape(", ".join(reads.first_samples(rank))))
    return table


def _summary(reads: EpochReads) -> Table:
    columns = ("per rank", "least", "mean", "most")
    table = titled_table(f"{reads.layout.world_size} ranks", columns, left=("per rank",))
    for name, column in (("samples", reads.samples_per_rank), ("shards", reads.shards_per_rank)):
        table.add_row(name, f"{column.min():,}", f"{column.mean():,.1f}", f"{column.max():,}")
    sizes = reads.bytes_per_rank
    table.add_row("bytes", *(megabytes(int(value)) for value in (sizes.min(), sizes.mean(), sizes.max())))
    return table


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
