"""Converts a source tree to shards, an index and a manifest at any URL.

Writing is idempotent (the same source and options write nothing the second time), atomic (shards and index have names
that carry their digest, and the manifest that names them comes last) and resumable (a journal at the destination says
which shards are done). Being killed at any moment leaves no dataset or the old one, whole, and the next run goes on.
Of several writers at one URL, the first to put its manifest wins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_tools.conversion.array_parts import WHOLE, Part, find_record, record_name
from data_tools.conversion.records import PartRecord, ShardJournal
from data_tools.conversion.rendition import RenditionName, num_cores, render_in_order, stored_form
from data_tools.conversion.sealing import Existing, concatenated, unsealed_manifest
from data_tools.conversion.shard_writer import ShardUploader, ShardWriter, check_writable, remove_leftovers
from data_tools.conversion.source_digest import digest_files, digest_head, image_line, source_digest, tree_digest
from data_tools.readers import read_source
from data_tools.readers.official import Deviation, deviations
from data_tools.readers.source_tree import SourceImage, SourceTree
from data_tools.remarks import Remarks
from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import SPLITS, Manifest, Rendition


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to convert, and how. `licence` and `note` of None are looked for beside the images."""

    layout: str
    dataset: str
    source: Path
    out: str
    size: int = 256  # pixels per side of the resized rendition
    shard_mb: float = 256  # target size of one shard in MiB
    num_workers: int | None = None  # processes that decode and resize; None = one per core, 0 = this process does it
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
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"--workers {self.num_workers}: give 0 or a positive number.")
        if self.rendition not in ("resized", "original", "both"):
            raise UserError(f"--rendition {self.rendition!r}: give resized, original or both.")

    @property
    def shard_bytes(self) -> int:
        return int(self.shard_mb * 2**20)

    @property
    def form(self) -> Rendition:
        return stored_form(None if self.rendition == "original" else self.size, self.rendition != "resized")


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What is at the URL now (of a part: what it contributes), and what the conversion did to get there."""

    manifest: Manifest
    written: bool  # False: everything was up to date
    remarks: Remarks = field(default_factory=Remarks)  # what is doubtful about the files, counted
    disagreements: tuple[str, ...] = ()  # about the licence, where none was given
    num_leftovers: int = 0  # scratch files of a killed conversion that were removed
    deviations: tuple[Deviation, ...] = ()  # from the official counts of a published benchmark
    num_resumed: int = 0  # shards that an earlier run had finished
    num_sent: int = 0  # shards that were uploaded; others were there already


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a conversion, or a part of one, has to store."""

    options: Conversion
    tree: SourceTree
    ordered: list[SourceImage]  # train first, each split sorted by sample id
    published: dict[str, str]  # sample id -> SHA-256 of the image file
    lines: dict[str, str]  # sample id -> its line of the source digest
    head: str
    tree_digest: str  # the same for all parts
    digest: str  # names the job: the source digest if it is a whole conversion


def convert(options: Conversion, show_progress: bool = False) -> ConversionReport:
    """Convert a source tree to `options.out`, or find that it is there already, or go on where a run was killed.

    Raises:
        UserError: the source is bad in any way, another dataset lives at the URL, another writer was faster, or the
            storage refuses.
    """
    tree = read_source(options.layout, options.source, options.dataset)
    licence = tree.licence if options.licence is None else options.licence
    tree = replace(tree, licence=licence, note=tree.note if options.note is None else options.note)
    store = Store(options.out)
    existing = Existing.at(store)
    existing.check_owner(options.dataset, options.overwrite)
    unofficial = tuple(deviations(tree.benchmark, tree.class_counts)) if tree.benchmark else ()
    job = _plan(tree, options, show_progress)
    found = _up_to_date(existing, job)
    if found is not None:
        return ConversionReport(found, False, deviations=unofficial)
    check_writable(store)
    num_leftovers = remove_leftovers(store)
    journal = ShardJournal(store, job.digest)
    uploader = ShardUploader(store, journal, journal.load(job.ordered))
    num_resumed = len(uploader.done)
    num_done = sum(record.shard.num_samples for record in uploader.done)
    try:
        with Progress("writing shards", len(job.ordered), shown=show_progress, start=num_done) as progress:
            _write_shards(uploader, job, num_done, lambda: progress.advance(1))
    finally:
        uploader.uploads.close()
    manifest = _finish(existing, job, uploader)
    journal.remove()
    return ConversionReport(
        manifest,
        written=True,
        remarks=Remarks.joined(record.remarks for record in uploader.done),
        disagreements=tree.disagreements if options.licence is None else (),
        num_leftovers=num_leftovers,
        deviations=unofficial,
        num_resumed=num_resumed,
        num_sent=uploader.num_sent,
    )


def _plan(tree: SourceTree, options: Conversion, show_progress: bool) -> _Job:
    """Read all files of this job once, so that what cannot be converted is known before anything is written."""
    ordered = options.part.own(tree.images)
    with Progress("checking source", len(ordered), shown=show_progress) as progress:
        digests = digest_files(ordered, lambda: progress.advance(1))
    head = digest_head(tree, options.form, options.shard_bytes)
    shared = tree_digest(head, tree.images)
    lines = {image.sample_id: image_line(image, found) for image, found in zip(ordered, digests, strict=True)}
    digest = source_digest(head, (lines[sample_id] for sample_id in sorted(lines)))
    return _Job(
        options=options,
        tree=tree,
        ordered=ordered,
        published={image.sample_id: found[0] for image, found in zip(ordered, digests, strict=True)},
        lines=lines,
        head=head,
        tree_digest=shared,
        digest=digest if options.part.is_whole else source_digest(digest, [shared, str(options.part)]),
    )


def _up_to_date(existing: Existing, job: _Job) -> Manifest | None:
    """What is at the URL already of this very job, if that is whole."""
    if job.options.overwrite:
        return None
    if job.options.part.is_whole:
        found = existing.manifest
        return found if found and found.source_digest == job.digest and existing.is_complete() else None
    record = find_record(existing.store, job.options.part, job.tree_digest)
    return record.skeleton if record and record.job_digest == job.digest else None


def _write_shards(uploader: ShardUploader, job: _Job, num_done: int, advance: Callable[[], None]) -> None:
    """Make and store the shards that follow those that are done; `advance` is called after each image."""
    left, options = job.ordered[num_done:], job.options
    done = [record.shard.split for record in uploader.done]
    num_workers = num_cores() if options.num_workers is None else options.num_workers
    rendered = render_in_order(left, options.form, num_workers)
    for split in SPLITS:
        with ShardWriter(
            uploader=uploader,
            prefix=options.part.prefix(split),
            split=split,
            number=done.count(split),
            target_bytes=options.shard_bytes,
        ) as writer:
            for image in left:
                if image.split != split:
                    continue
                result = next(rendered)
                if result.row["source_sha256"] != job.published[image.sample_id]:
                    raise UserError(f"{image.image}: changed while it was converted; convert again when it is final.")
                writer.write(result, job.lines[image.sample_id])
                advance()
    uploader.uploads.wait()


def _finish(existing: Existing, job: _Job, uploader: ShardUploader) -> Manifest:
    """The manifest of a whole conversion, or the record of a part."""
    options, shards, rows = job.options, [record.shard for record in uploader.done], concatenated(uploader.done)
    skeleton = unsealed_manifest(
        rendition=options.form,
        dataset=options.dataset,
        layout=options.layout,
        licence=job.tree.licence,
        source=job.tree.note,
        citation=job.tree.citation,
        classes=job.tree.class_counts,
        mask_semantics=job.tree.mask_semantics,
        saturation=job.tree.saturation,
        shards=shards,
    )
    if options.part.is_whole:
        return existing.seal(skeleton, rows, job.digest, options.overwrite)
    record = PartRecord(
        part=options.part.number,
        num_parts=options.part.total,
        tree_digest=job.tree_digest,
        job_digest=job.digest,
        head=job.head,
        skeleton=skeleton,
        rows=rows,
        remarks=Remarks.joined(one.remarks for one in uploader.done),
    )
    uploader.store.write(record_name(record.tree_digest, record.part, record.num_parts), record.to_bytes())
    return skeleton
