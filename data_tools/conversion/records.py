"""What a running conversion notes at its destination: one record per finished shard, one per finished part.

A record is a parquet file: its rows are index rows with the digest of each source image, its metadata says the rest.

The journal of a conversion is where its next run goes on: `journal/<job>/000000.parquet, ...` has one record per shard
in the order of writing, each put after its shard is stored and verified. The same source and options make the same
shards in the same order, so a run that finds records needs to do only what follows them.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.conversion.rendition import ORIGINAL, XYZ_EXTENSION
from data_tools.readers.source_tree import SourceImage
from data_tools.remarks import Remarks
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import INDEX_SCHEMA, Span
from fmad_dist.stream.manifest import Manifest, ShardInfo

JOURNAL = "journal"  # the folder of all journals
LINE_COLUMN = "source_line_sha256"  # digest of everything about the image that the source digest covers
ROW_SCHEMA = INDEX_SCHEMA.append(pa.field(LINE_COLUMN, pa.string()))
_SHARD = ROW_SCHEMA.get_field_index("shard")
_KEY = b"fmad"


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is stored and verified, with its rows; their `shard` column is left empty."""

    shard: ShardInfo
    rows: pa.Table  # ROW_SCHEMA
    remarks: Remarks

    def to_bytes(self) -> bytes:
        return _encode(self.rows, {"shard": self.shard.model_dump(), "remarks": asdict(self.remarks)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ShardRecord":
        rows, facts = _decode(data, where)
        return cls(ShardInfo.model_validate(facts["shard"]), rows, facts["remarks"])


@dataclass(frozen=True)
class PartRecord:
    """A finished part of a conversion: everything that sealing needs to know about it."""

    part: int  # 1 ... num_parts
    num_parts: int
    tree_digest: str  # equal for all parts of one tree and one set of options
    job_digest: str  # of this part's own files
    head: str  # what the source digest starts with
    skeleton: Manifest  # classes, shards and index are those of the whole tree, of this part, and of nothing
    rows: pa.Table  # ROW_SCHEMA; `shard` counts through the skeleton's shards
    remarks: Remarks

    def to_bytes(self) -> bytes:
        facts = {name: getattr(self, name) for name in _PART_FACTS}
        return _encode(self.rows, {**facts, "skeleton": self.skeleton.model_dump(), "remarks": asdict(self.remarks)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "PartRecord":
        rows, facts = _decode(data, where)
        return cls(skeleton=Manifest.model_validate(facts.pop("skeleton")), rows=rows, **facts)


_PART_FACTS = ("part", "num_parts", "tree_digest", "job_digest", "head")


class ShardJournal:
    """The records of one job: a conversion of one source with one set of options, or a part of one."""

    def __init__(self, store: Store, job_digest: str) -> None:
        self.store = store
        self.folder = f"{JOURNAL}/{job_digest[:16]}"

    def load(self, ordered: Sequence[SourceImage]) -> list[ShardRecord]:
        """The records from the first on, as far as they and their shards are whole and cover the start of `ordered`."""
        sizes = {entry.name: entry.num_bytes for entry in self.store.entries("shards")}
        names = set(self.store.list(self.folder))
        records: list[ShardRecord] = []
        covered = 0
        while self._name(len(records)) in names:
            name = self._name(len(records))
            try:
                record = ShardRecord.from_bytes(self.store.read(name), self.store.url_of(name))
            except UserError:
                break  # a damaged record is as good as none
            expected = [image.sample_id for image in ordered[covered : covered + record.shard.num_samples]]
            stored = sizes.get(record.shard.name) == record.shard.num_bytes
            if not stored or record.rows.column("sample_id").to_pylist() != expected:
                break
            covered += record.shard.num_samples
            records.append(record)
        return records

    def add(self, number: int, record: ShardRecord) -> None:
        self.store.write(self._name(number), record.to_bytes())

    def remove(self) -> None:
        self.store.remove_all(self.store.list(self.folder))
        if self.store.is_local:
            self.store.remove_empty_folders(JOURNAL)

    def _name(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.parquet"


def span_columns(name: str, span: Span | None) -> dict[str, object]:
    """The columns of a row that say where a file lies; none if there is no such file."""
    return {} if span is None else {f"{name}_{field}": value for field, value in asdict(span).items()}


def spans_columns(name: str, spans: Sequence[Span]) -> dict[str, object]:
    """The columns of a row that say where several files lie."""
    return {f"{name}_{field}": [getattr(span, field) for span in spans] for field in ("offset", "size", "sha256")}


def file_columns(spans: Mapping[str, Span]) -> dict[str, object]:
    """The columns of a row that say where the files of its sample lie, by extension, masks in their order."""
    originals = {name.removeprefix(f"{ORIGINAL}."): s for name, s in spans.items() if name.startswith(f"{ORIGINAL}.")}
    return {
        **span_columns("image", spans.get("png")),
        **spans_columns("mask", [span for name, span in spans.items() if name.startswith("mask.")]),
        **span_columns("original", next((s for name, s in originals.items() if not name.startswith("mask.")), None)),
        **spans_columns("original_mask", [span for name, span in originals.items() if name.startswith("mask.")]),
        **span_columns("xyz", spans.get(XYZ_EXTENSION)),
    }


def with_shards(rows: pa.Table, shards: pa.Array) -> pa.Table:
    """The rows with another column `shard`."""
    return rows.set_column(_SHARD, ROW_SCHEMA.field(_SHARD), shards)


def _encode(rows: pa.Table, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    table = rows.replace_schema_metadata({_KEY: json.dumps(facts, sort_keys=True).encode()})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _decode(data: bytes, where: str) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and facts of a record; bytes that are none are refused (UserError)."""
    try:
        table = pq.read_table(io.BytesIO(data))
        facts = json.loads(table.schema.metadata[_KEY])
        facts["remarks"] = Remarks(**facts["remarks"])
        return table.replace_schema_metadata(None).cast(ROW_SCHEMA), facts
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not a readable record ({first_line(error)}); remove it with `fmad data gc`."
        ) from None
