"""Converts a source tree to shards, an index and a manifest at any URL.

Writing is idempotent (the same source and options write nothing the second time) and atomic: shards and index have
names that carry their digest, and the manifest that names them comes last, so being killed at any moment leaves either
no dataset or the old one, whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from data_tools.counts import count_classes
from data_tools.fingerprint import FileDigests, digest_files, source_digest
from data_tools.readers import read_source
from data_tools.readers.official import Deviation, deviations
from data_tools.readers.source import SourceTree
from data_tools.rendition import IMAGE_RESAMPLE
from data_tools.shards import ShardWriter
from data_tools.staging import check_writable, remove_leftovers
from data_tools.workers import num_cores, render_in_order
from fmad_dist.errors import UserError
from fmad_dist.masks import MASK_RESAMPLE
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import (
    INDEX_SCHEMA,
    MANIFEST_NAME,
    IndexInfo,
    Manifest,
    Rendition,
    ShardInfo,
    index_bytes,
    load_manifest,
)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, and how. `licence` and `note` of None are looked for beside the images."""

    layout: str
    dataset: str
    source: Path
    out: str
    size: int = 256  # pixels per side of the stored rendition
    shard_mb: int = 256  # target size of one shard in MiB
    num_workers: int = 0  # 0: one per core
    licence: str | None = None
    note: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: give a side length between 8 and 4096 pixels.")
        if self.shard_mb < 1:
            raise UserError(f"--shard-mb {self.shard_mb}: give a positive number of megabytes.")
        if self.num_workers < 0:
            raise UserError(f"--workers {self.num_workers}: give 0 (one per core) or a positive number.")

    @property
    def shard_bytes(self) -> int:
        return self.shard_mb << 20


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """The manifest that is now at the URL, and what the conversion did to get there."""

    manifest: Manifest
    written: bool  # False: everything was up to date
    num_pooled_masks: int  # masks that nearest resizing would have emptied
    num_leftovers: int  # scratch files of a killed conversion that were removed
    deviations: tuple[Deviation, ...] = ()  # from the official counts of a published benchmark


@dataclass(slots=True)
class _Written:
    """What a running conversion has uploaded so far."""

    advance: Callable[[], None]
    shards: list[ShardInfo] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    num_pooled: int = 0


def convert(options: Conversion, show_progress: bool = False) -> ConversionReport:
    """Convert a source tree to `options.out`, or find that it is there already.

    Raises:
        UserError: the source is bad in any way, another dataset lives at the URL, or the storage refuses.
    """
    tree = _with_provenance(read_source(options.layout, options.source, options.dataset), options)
    store = Store(options.out)
    _check_owner(store, options)
    unofficial = deviations(tree.benchmark, count_classes(tree.images)) if tree.benchmark else ()
    with _progress(len(tree.images), show_progress) as (checked, stored):
        digests = digest_files(tree.images, checked)
        digest = source_digest(tree, digests, size=options.size, shard_bytes=options.shard_bytes)
        existing = _existing(store)
        if existing and existing.source_digest == digest and not options.overwrite and _is_complete(store, existing):
            return ConversionReport(existing, False, num_pooled_masks=0, num_leftovers=0, deviations=unofficial)
        check_writable(store)
        num_leftovers = remove_leftovers(store)
        written = _Written(advance=stored)
        try:
            _write_shards(store, tree, digests, options, written)
            manifest = _write_manifest(store, tree, options, digest, written)
        except BaseException:
            _withdraw(store, written.shards, existing)
            raise
    return ConversionReport(manifest, True, written.num_pooled, num_leftovers, unofficial)


def _with_provenance(tree: SourceTree, options: Conversion) -> SourceTree:
    licence = options.licence if options.licence is not None else tree.licence
    note = options.note if options.note is not None else tree.note
    return replace(tree, licence=licence, note=note)


def _write_shards(
    store: Store, tree: SourceTree, digests: list[FileDigests], options: Conversion, written: _Written
) -> None:
    """All shards of all splits, train first, each split sorted by sample id; `written` grows with them."""
    published = {record.sample_id: found.image for record, found in zip(tree.images, digests, strict=True)}
    ordered = [record for split in SPLITS for record in tree.images if record.split == split]
    rendered = render_in_order(ordered, options.size, options.num_workers or num_cores())
    for split in SPLITS:
        with ShardWriter(store, tree.dataset, split, options.shard_bytes, written.shards, written.rows) as writer:
            for record in ordered:
                if record.split != split:
                    continue
                result = next(rendered)
                if result.source_sha256 != published[record.sample_id]:
                    raise UserError(f"{record.image}: changed while it was converted; convert again when it is final.")
                writer.write(record, result)
                written.num_pooled += result.num_pooled
                written.advance()


def _withdraw(store: Store, shards: list[ShardInfo], existing: Manifest | None) -> None:
    """Remove the shards of a failed conversion, except those that the dataset at the URL consists of."""
    kept = {shard.name for shard in existing.shards} if existing else set()
    for shard in shards:
        if shard.name not in kept and store.exists(shard.name):
            store.remove(shard.name)


def _write_manifest(
    store: Store,
    tree: SourceTree,
    options: Conversion,
    digest: str,
    written: _Written,
) -> Manifest:
    rows = written.rows
    index = index_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    sha256 = hashlib.sha256(index).hexdigest()
    info = IndexInfo(name=f"index-{sha256[:16]}.parquet", num_bytes=len(index), num_samples=len(rows), sha256=sha256)
    manifest = Manifest(
        dataset=tree.dataset,
        layout=tree.layout,
        licence=tree.licence,
        source=tree.note,
        citation=tree.citation,
        rendition=Rendition(size=options.size, image_resample=IMAGE_RESAMPLE, mask_resample=MASK_RESAMPLE),
        source_digest=digest,
        classes=count_classes(tree.images),
        mask_semantics=tree.mask_semantics,
        saturation=tree.saturation,
        shards=written.shards,
        index=info,
    ).sealed()
    store.write(info.name, index)
    store.write(MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def _check_owner(store: Store, options: Conversion) -> None:
    """Raises:
    UserError: another dataset lives at the URL and may not be replaced.
    """
    if options.overwrite or not store.exists(MANIFEST_NAME):
        return
    try:
        owner = json.loads(store.read(MANIFEST_NAME)).get("dataset")
    except (ValueError, AttributeError):
        return  # a damaged manifest owns nothing; converting again is the way to repair it
    if owner is not None and owner != options.dataset:
        raise UserError(
            f"{store.url}: holds the dataset {owner!r}, not {options.dataset!r}; choose another --out or --overwrite."
        )


def _existing(store: Store) -> Manifest | None:
    """The whole manifest at the URL; None if there is none or it is damaged, which a conversion repairs."""
    if not store.exists(MANIFEST_NAME):
        return None
    try:
        return load_manifest(store.url)
    except UserError:
        return None


def _is_complete(store: Store, manifest: Manifest) -> bool:
    """Whether the index and every shard are there with the sizes that the manifest states."""
    parts = [(manifest.index.name, manifest.index.num_bytes), *((s.name, s.num_bytes) for s in manifest.shards)]
    return all(store.exists(name) and store.size(name) == num_bytes for name, num_bytes in parts)


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
