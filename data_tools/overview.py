"""Tables for the terminal: what a dataset holds, and what is wrong with it."""

from datetime import timedelta

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from data_tools.lint import ERROR, LintReport
from data_tools.readers.official import Deviation
from data_tools.sharder import Conversion, ConversionReport
from fmad_dist.errors import UserError
from fmad_dist.stream.manifest import ClassCounts, Manifest
from fmad_dist.wording import counted


def manifest_overview(url: str, manifest: Manifest) -> RenderableType:
    """Classes with their counts, and below them the facts about the whole dataset."""
    counts = Table(title=escape(f"{manifest.dataset} at {url}"), title_justify="left")
    for name in ("class", "train", "val", "test good", "test defect", "defects"):
        counts.add_column(name, justify="left" if name in ("class", "defects") else "right", overflow="fold")
    for name, count in manifest.classes.items():
        defects = ", ".join(f"{defect} {number}" for defect, number in count.defects.items())
        counts.add_row(escape(name), *_numbers(count), escape(defects))
    total = [sum(column) for column in zip(*map(_values, manifest.classes.values()), strict=True)]
    counts.add_section()
    counts.add_row("all", *map(str, total), "")
    return Group(counts, _facts(manifest))


def _values(count: ClassCounts) -> tuple[int, int, int, int]:
    return count.train, count.val, count.test_normal, count.test_anomalous


def _numbers(count: ClassCounts) -> list[str]:
    return [str(value) for value in _values(count)]


def _facts(manifest: Manifest) -> Table:
    num_bytes = sum(shard.num_bytes for shard in manifest.shards) + manifest.index.num_bytes
    facts = Table(show_header=False, box=None)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in (
        ("layout", manifest.layout),
        ("stored as", _stored_as(manifest)),
        ("images", manifest.rendition.image_resample),
        ("masks", f"{manifest.mask_semantics}; {manifest.rendition.mask_resample}"),
        ("shards", f"{len(manifest.shards)}, {num_bytes:,} bytes with the index"),
        ("licence", manifest.licence),
        ("source", manifest.source),
        ("citation", manifest.citation or "none known"),
        ("digest", manifest.digest),
    ):
        facts.add_row(name, escape(value))
    return facts


def _stored_as(manifest: Manifest) -> str:
    size, original = manifest.rendition.size, manifest.rendition.original
    kinds = [f"{size}x{size} RGB PNG"] * (size is not None) + ["original files"] * original
    return " and ".join(kinds)


def conversion_lines(options: Conversion, report: ConversionReport) -> list[str]:
    """What a conversion did, for its user."""
    manifest = report.manifest
    whole = options.part.is_whole
    num_images = manifest.index.num_samples if whole else sum(shard.num_samples for shard in manifest.shards)
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
    if report.num_resumed:
        lines.append(f"went on after {report.num_resumed} shards of an interrupted conversion")
    if report.num_pooled_masks:
        lines.append(f"{report.num_pooled_masks} masks were max-pooled, because nearest resizing would have lost them")
    if report.num_leftovers:
        lines.append(f"removed {report.num_leftovers} temporary files of an interrupted conversion")
    return lines


def parse_age(text: str) -> timedelta:
    """From `90s`, `30m`, `24h` or `7d`.

    Raises:
        UserError: not of that form.
    """
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise UserError(f"--older-than {text!r}: write a number and a unit, for example 90s, 30m, 24h or 7d.")
    return timedelta(**{units[unit]: int(number)})


def deviations_table(deviations: tuple[Deviation, ...], limit: int = 40) -> Table:
    """Where counts differ from the official ones; at most `limit` rows."""
    table = Table(title="counts that differ from the official ones", title_justify="left", show_edge=False)
    for name in ("class", "what", "official", "found"):
        table.add_column(name, overflow="fold")
    for deviation in deviations[:limit]:
        table.add_row(
            escape(deviation.class_name), escape(deviation.what), escape(deviation.official), escape(deviation.found)
        )
    if len(deviations) > limit:
        table.add_row("...", f"and {len(deviations) - limit} more", "", "")
    return table


def findings_table(report: LintReport) -> Table:
    """One row per finding."""
    table = Table(show_edge=False)
    table.add_column("level")
    table.add_column("where", overflow="fold")
    table.add_column("finding", overflow="fold")
    for finding in report.findings:
        colour = "red" if finding.level == ERROR else "yellow"
        table.add_row(f"[{colour}]{finding.level}[/]", escape(finding.where), escape(finding.message))
    return table
