"""Converts a source tree to shards, an index and a manifest at any URL.

Writing is idempotent (the same source and options write nothing the second time), atomic (shards and index have names
that carry their digest, and the manifest that names them comes last) and resumable (a journal at the destination says
which shards are done). Being killed at any moment leaves no dataset or the old one, whole, and the next run goes on.
Of several writers at one URL, the first to put its manifest wins.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.counts import count_classes
from data_tools.fingerprint import digest_files, digest_head, image_line, source_digest, tree_digest
from data_tools.journal import Journal
from data_tools.parts import SPLITS, WHOLE, Part, find_record, record_name
from data_tools.readers import read_source
from data_tools.readers.official import Deviation, deviations
from data_tools.readers.source import SourceImage, SourceTree
from data_tools.records import PartRecord, ShardRecord
from data_tools.rendition import RenditionName, StoredForm
from data_tools.sealing import (
    Existing,
    concatenated,
    empty_manifest,
    finish_manifest,
    put_manifest,
)
from data_tools.shards import ShardWriter
from data_tools.staging import check_writable, remove_leftovers
from data_tools.uploader import Uploader
from data_tools.workers import num_cores, render_in_order
from fmad_dist.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, and how. `licence` and `note` of None are looked for beside the images."""

    layout: str
    dataset: str
    source: Path
    out: str
    size: int = 256  # pixels per side of the resized rendition
    shard_mb: float = 256  # target size of one shard in MiB
    num_workers: int = 0  # 0: one per core
    licence: str | None = None
    note: str | None = None
    overwrite: bool = False
    rendition: RenditionName = "resized"
    part: Part = WHOLE

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: give a side length between 8 and 4096 pixels.")
        if not self.shard_mb > 0:
            raise UserError(f"--shard-mb {self.shard_mb}: give a positive number of megabytes.")
        if self.num_workers < 0:
            raise UserError(f"--workers {self.num_workers}: give 0 (one per core) or a positive number.")
        if self.rendition not in ("resized", "original", "both"):
            raise UserError(f"--rendition {self.rendition!r}: give resized, original or both.")

    @property
    def shard_bytes(self) -> int:
        return int(self.shard_mb * 2**20)

    @property
    def form(self) -> StoredForm:
        return StoredForm.of(self.rendition, self.size)


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What is at the URL now (of a part: what it contributes), and what the conversion did to get there."""

    manifest: Manifest
    written: bool  # False: everything was up to date
    num_pooled_masks: int = 0  # masks that nearest resizing would have emptied
    num_leftovers: int = 0  # scratch files of a killed conversion that were removed
    deviations: tuple[Deviation, ...] = ()  # from the official counts of a published benchmark
    num_resumed: int = 0  # shards that an earlier run had finished
    num_sent: int = 0  # shards that were uploaded; others were there already


@dataclass(frozen=True, slots=True)
class _Work:
    """What a conversion, or a part of one, has to store."""

    ordered: list[SourceImage]  # train first, each split sorted by sample id
    published: dict[str, str]  # sample id -> SHA-256 of the image file
    lines: dict[str, str]  # sample id -> its line of the source digest
    head: str
    digest: str  # names the job: the source digest if it is a whole conversion


def convert(options: Conversion, show_progress: bool = False) -> ConversionReport:
    """Convert a source tree to `options.out`, or find that it is there already, or go on where a run was killed.

    Raises:
        UserError: the source is bad in any way, another dataset lives at the URL, another writer was faster, or the
            storage refuses.
    """
    tree = _with_provenance(read_source(options.layout, options.source, options.dataset), options)
    store = Store(options.out)
    existing = Existing.at(store)
    existing.check_owner(options.dataset, options.overwrite)
    unofficial = deviations(tree.benchmark, count_classes(tree.images)) if tree.benchmark else ()
    with _progress(len(options.part.own(tree.images)), show_progress) as (checked, stored):
        work = _plan(tree, options, checked)
        found = _up_to_date(store, existing, tree, options, work)
        if found is not None:
            return ConversionReport(found, False, deviations=unofficial)
        check_writable(store)
        num_leftovers = remove_leftovers(store)
        journal = Journal(store, work.digest)
        uploader = Uploader(store, journal, journal.load(work.ordered))
        num_resumed = len(uploader.done)
        try:
            _write_shards(uploader, tree, options, work, stored)
        finally:
            uploader.close()
        manifest = _finish(store, existing, tree, options, work, uploader.done)
        journal.remove()
    num_pooled = sum(record.num_pooled for record in uploader.done)
    return ConversionReport(manifest, True, num_pooled, num_leftovers, unofficial, num_resumed, uploader.num_sent)


def _with_provenance(tree: SourceTree, options: Conversion) -> SourceTree:
    licence = options.licence if options.licence is not None else tree.licence
    note = options.note if options.note is not None else tree.note
    return replace(tree, licence=licence, note=note)


def _plan(tree: SourceTree, options: Conversion, checked: Callable[[], None]) -> _Work:
    """Read all files of this job once, so that what cannot be converted is known before anything is written."""
    ordered = options.part.own(tree.images)
    digests = digest_files(ordered, checked)
    published = {image.sample_id: found.image for image, found in zip(ordered, digests, strict=True)}
    lines = {image.sample_id: image_line(image, found) for image, found in zip(ordered, digests, strict=True)}
    head = digest_head(tree, options.form, options.shard_bytes)
    digest = source_digest(head, (lines[sample_id] for sample_id in sorted(lines)))
    if not options.part.is_whole:
        digest = source_digest(digest, [tree_digest(head, tree.images), str(options.part)])
    return _Work(ordered, published, lines, head, digest)


def _up_to_date(
    store: Store, existing: Existing, tree: SourceTree, options: Conversion, work: _Work
) -> Manifest | None:
    """What is at the URL already of this very job, if that is whole."""
    if options.overwrite:
        return None
    if options.part.is_whole:
        found = existing.manifest
        return found if found and found.source_digest == work.digest and existing.is_complete() else None
    record = find_record(store, options.part, tree_digest(work.head, tree.images))
    return record.skeleton if record and record.job_digest == work.digest else None


def _write_shards(
    uploader: Uploader, tree: SourceTree, options: Conversion, work: _Work, stored: Callable[[], None]
) -> None:
    """Make and store the shards that follow those that are done."""
    num_done = sum(record.shard.num_samples for record in uploader.done)
    for _ in range(num_done):
        stored()
    left = work.ordered[num_done:]
    done = [record.shard.split for record in uploader.done]
    rendered = render_in_order(left, options.form, options.num_workers or num_cores())
    for split in SPLITS:
        number = done.count(split)
        prefix = options.part.prefix(split)
        with ShardWriter(uploader, tree.dataset, prefix, split, number, options.shard_bytes) as writer:
            for image in left:
                if image.split != split:
                    continue
                result = next(rendered)
                if result.source_sha256 != work.published[image.sample_id]:
                    raise UserError(f"{image.image}: changed while it was converted; convert again when it is final.")
                writer.write(image, result, work.lines[image.sample_id])
                stored()
    uploader.wait()


def _finish(
    store: Store, existing: Existing, tree: SourceTree, options: Conversion, work: _Work, done: list[ShardRecord]
) -> Manifest:
    """The manifest of a whole conversion, or the record of a part."""
    skeleton = empty_manifest(tree, options.form).model_copy(update={"shards": [record.shard for record in done]})
    rows = concatenated(done)
    if options.part.is_whole:
        manifest = finish_manifest(store, skeleton, rows, work.digest)
        return put_manifest(store, manifest, existing, options.overwrite)
    record = PartRecord(
        part=options.part.number,
        num_parts=options.part.total,
        tree_digest=tree_digest(work.head, tree.images),
        job_digest=work.digest,
        head=work.head,
        skeleton=skeleton,
        rows=rows,
        num_pooled=sum(one.num_pooled for one in done),
    )
    store.write(record_name(record), record.to_bytes())
    return skeleton


@contextmanager
def _progress(total: int, show: bool) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Two bars on standard error: call the first function per checked image, the second per stored one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as progress:
        checking = progress.add_task("checking source", total=total)
        storing = progress.add_task("writing shards ", total=total)
        yield (lambda: progress.advance(checking)), (lambda: progress.advance(storing))
