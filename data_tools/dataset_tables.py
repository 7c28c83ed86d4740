"""Tables for the terminal: what a dataset holds, and what is wrong with it."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import astuple

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from data_tools.conversion.convert import Conversion, ConversionReport
from data_tools.lint import ERROR, LintReport
from data_tools.readers.official import Deviation
from fmad_dist.base.console import counted
from fmad_dist.stream.manifest import ClassCounts, Manifest


def titled_table(title: str | None, columns: Sequence[str], left: Container[str], edge: bool = False) -> Table:
    """A table without rows; the columns in `left` begin at the left, numbers at the right."""
    table = Table(title=title, title_justify="left", show_edge=edge)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Two columns without a header: names in bold, and what is to be said of each."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, escape(value))
    return table


def manifest_overview(url: str, manifest: Manifest) -> RenderableType:
    """Classes with their counts, and below them the facts about the whole dataset."""
    columns = ("class", "train", "val", "test good", "test defect", "defects")
    counts = titled_table(escape(f"{manifest.dataset} at {url}"), columns, left=("class", "defects"), edge=True)
    for name, count in manifest.classes.items():
        defects = ", ".join(f"{defect} {number}" for defect, number in count.defects.items())
        counts.add_row(escape(name), *map(str, _values(count)), escape(defects))
    total = [sum(column) for column in zip(*map(_values, manifest.classes.values()), strict=True)]
    counts.add_section()
    counts.add_row("all", *map(str, total), "")
    num_bytes = sum(shard.num_bytes for shard in manifest.shards) + manifest.index.num_bytes
    size, original = manifest.rendition.size, manifest.rendition.original
    stored = [f"{size}x{size} RGB PNG"] * (size is not None) + ["original files"] * original
    facts = (
        ("layout", manifest.layout),
        ("stored as", " and ".join(stored)),
        ("images", manifest.rendition.image_resample),
        ("masks", f"{manifest.mask_semantics}; {manifest.rendition.mask_resample}"),
        ("shards", f"{len(manifest.shards)}, {num_bytes:,} bytes with the index"),
        ("licence", manifest.licence),
        ("source", manifest.source),
        ("citation", manifest.citation or "none known"),
        ("digest", manifest.digest),
    )
    return Group(counts, facts_table(facts))


def _values(count: ClassCounts) -> tuple[int, int, int, int]:
    return count.train, count.val, count.test_normal, count.test_anomalous


def conversion_lines(options: Conversion, report: ConversionReport) -> list[str]:
    """What a conversion did, for its user."""
    manifest = report.manifest
    whole = options.part.is_whole
    num_images = sum(shard.num_samples for shard in manifest.shards)
    part = "" if whole else f" (part {options.part.number} of {options.part.total})"
    what = f"{counted(num_images, 'image', 'images')} of {counted(len(manifest.classes), 'class', 'classes')}{part}"
    if not report.written:
        digest = f", digest {manifest.digest[:16]}" if whole else ""
        return [f"up to date: {options.out} holds {what}{digest}; nothing written"]
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    shards = counted(len(manifest.shards), "shard", "shards")
    lines = [f"converted {what} to {shards} ({num_bytes / 2**20:.1f} MiB) at {options.out}"]
    if whole:
        lines[0] += f", digest {manifest.digest[:16]}"
    else:
        lines.append(f"when all {options.part.total} parts are done: fmad data seal {options.out}")
    lines.append(f"licence: {manifest.licence}")
    lines += [f"warning: {sentence}" for sentence in report.disagreements]
    if report.num_resumed:
        lines.append(f"went on after {report.num_resumed} shards of an interrupted conversion")
    lines += report.remarks.lines()
    if report.num_leftovers:
        lines.append(f"removed {report.num_leftovers} temporary files of an interrupted conversion")
    return lines


def deviations_table(deviations: tuple[Deviation, ...], limit: int = 40) -> Table:
    """Where counts differ from the official ones; at most `limit` rows."""
    columns = ("class", "what", "official", "found")
    table = titled_table("counts that differ from the official ones", columns, left=columns)
    for deviation in deviations[:limit]:
        table.add_row(*map(escape, astuple(deviation)))
    if len(deviations) > limit:
        table.add_row("...", f"and {len(deviations) - limit} more", "", "")
    return table


def findings_table(report: LintReport) -> Table:
    """One row per finding."""
    columns = ("level", "where", "finding")
    table = titled_table(None, columns, left=columns)
    for finding in report.findings:
        colour = "red" if finding.level == ERROR else "yellow"
        table.add_row(f"[{colour}]{finding.level}[/]", escape(finding.where), escape(finding.message))
    return table
