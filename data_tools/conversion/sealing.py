"""The last step of a conversion: index and manifest, put so that of several writers one wins."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_tools.conversion.array_parts import load_records, merged_rows, record_name
from data_tools.conversion.records import LINE_COLUMN, ROW_SCHEMA, ShardRecord, with_shards
from data_tools.conversion.source_digest import source_digest
from data_tools.remarks import Remarks
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import index_bytes
from fmad_dist.stream.manifest import MANIFEST_NAME, IndexInfo, Manifest, load_manifest


@dataclass(frozen=True, slots=True)
class Existing:
    """What was at a URL when a conversion began."""

    store: Store
    raw: bytes | None  # the bytes of manifest.json
    manifest: Manifest | None  # None also if they are damaged, which a conversion repairs

    @classmethod
    def at(cls, store: Store) -> "Existing":
        raw = store.read(MANIFEST_NAME) if store.exists(MANIFEST_NAME) else None
        try:
            return cls(store, raw, load_manifest(store.url) if raw is not None else None)
        except UserError:
            return cls(store, raw, None)

    def check_owner(self, dataset: str, overwrite: bool) -> None:
        """Refuse to replace another dataset that lives at the URL (UserError)."""
        if self.raw is None or overwrite:
            return
        try:
            owner = json.loads(self.raw).get("dataset")
        except (ValueError, AttributeError):
            return  # a damaged manifest owns nothing; converting again is the way to repair it
        if owner is not None and owner != dataset:
            raise UserError(
                f"{self.store.url}: holds the dataset {owner!r}, not {dataset!r}; choose another --out or --overwrite."
            )

    def is_complete(self) -> bool:
        return self.manifest is not None and not missing_files(self.store, self.manifest)

    def seal(self, skeleton: Manifest, rows: pa.Table, digest: str, overwrite: bool) -> Manifest:
        """Store the index of all rows, complete the manifest that names it, and put it in place of what was there.

        Raises:
            UserError: a shard vanished meanwhile, or another writer put another dataset here meanwhile.
        """
        index = index_bytes(rows.drop_columns(LINE_COLUMN))
        sha256 = hashlib.sha256(index).hexdigest()
        info = IndexInfo(
            name=f"index-{sha256[:16]}.parquet", num_bytes=len(index), num_samples=rows.num_rows, sha256=sha256
        )
        self.store.write(info.name, index)
        manifest = skeleton.model_copy(update={"index": info, "source_digest": digest}).sealed()
        missing = missing_files(self.store, manifest)
        if missing:
            raise UserError(
                f"{self.store.url_of(missing[0])}: vanished during the conversion; convert again, it goes on."
            )
        data = (manifest.model_dump_json(indent=1) + "\n").encode()
        if self.store.write_if(MANIFEST_NAME, data, self.raw):
            return manifest
        if not overwrite:
            raise UserError(
                f"{self.store.url}: another conversion finished here first, and its dataset stays; give --overwrite "
                "to replace it, or choose another --out."
            )
        self.store.write(MANIFEST_NAME, data)
        return manifest


def missing_files(store: Store, manifest: Manifest) -> list[str]:
    """Names of the index and the shards that are not there with the sizes that the manifest states."""
    sizes = {entry.name: entry.num_bytes for entry in store.entries()}
    parts = [(manifest.index.name, manifest.index.num_bytes), *((s.name, s.num_bytes) for s in manifest.shards)]
    return [name for name, num_bytes in parts if sizes.get(name) != num_bytes]


def unsealed_manifest(**facts: Any) -> Manifest:
    """A manifest with these facts, still without an index and digests."""
    index = IndexInfo(name="", num_bytes=0, num_samples=0, sha256="")
    return Manifest(source_digest="", index=index, **facts)


def concatenated(done: list[ShardRecord]) -> pa.Table:
    """The rows of all shards in order, each with the index of its shard."""
    shards = (pa.array([index] * record.rows.num_rows, pa.int32()) for index, record in enumerate(done))
    tables = [with_shards(record.rows, own) for record, own in zip(done, shards, strict=True)]
    return pa.concat_tables(tables) if tables else ROW_SCHEMA.empty_table()


def seal_parts(url: str, overwrite: bool = False) -> tuple[Manifest, Remarks]:
    """Make one dataset of all parts at `url`; returns its manifest and what the parts had to say about their files.

    Raises:
        UserError: parts are missing or do not belong together, or another dataset lives at the URL.
    """
    store = Store(url)
    records = load_records(store)
    existing = Existing.at(store)
    existing.check_owner(records[0].skeleton.dataset, overwrite)
    rows = merged_rows(records)
    order = rows.sort_by("sample_id")
    digest = source_digest(records[0].head, order.column(LINE_COLUMN).to_pylist())
    shards = [shard for record in records for shard in record.skeleton.shards]
    skeleton = records[0].skeleton.model_copy(update={"shards": shards})
    _check_counts(store, skeleton, rows)
    manifest = existing.seal(skeleton, rows, digest, overwrite)
    store.remove_all([record_name(record.tree_digest, record.part, record.num_parts) for record in records])
    return manifest, Remarks.joined(record.remarks for record in records)


def _check_counts(store: Store, skeleton: Manifest, rows: pa.Table) -> None:
    """Refuse parts that do not hold every image of the tree exactly once together (UserError)."""
    ids = rows.column("sample_id").to_pylist()
    stated = sum(c.train + c.val + c.test_normal + c.test_anomalous for c in skeleton.classes.values())
    if len(ids) != stated or len(set(ids)) != stated:
        raise UserError(f"{store.url}: the parts hold {len(set(ids))} images, the source has {stated}; convert again.")
