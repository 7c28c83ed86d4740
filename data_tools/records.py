"""What a running conversion notes at its destination: one record per finished shard, one per finished part.

A record is a parquet file: its rows are index rows with the digest of each source image, its metadata says the rest.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmad_dist.errors import UserError, first_line
from fmad_dist.stream.dataset import INDEX_SCHEMA
from fmad_dist.stream.manifest import Manifest, ShardInfo

LINE_COLUMN = "source_line_sha256"  # digest of everything about the image that the source digest covers
ROW_SCHEMA = INDEX_SCHEMA.append(pa.field(LINE_COLUMN, pa.string()))
_KEY = b"fmad"


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is stored and verified, with its rows; their `shard` column is left empty."""

    shard: ShardInfo
    rows: pa.Table  # ROW_SCHEMA
    num_pooled: int  # masks that nearest resizing would have emptied

    def to_bytes(self) -> bytes:
        return _encode(self.rows, {"shard": self.shard.model_dump(), "num_pooled": self.num_pooled})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ShardRecord":
        rows, facts = _decode(data, where)
        return cls(ShardInfo.model_validate(facts["shard"]), rows, facts["num_pooled"])


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
    num_pooled: int

    def to_bytes(self) -> bytes:
        facts = {name: getattr(self, name) for name in _PART_FACTS}
        return _encode(self.rows, {**facts, "skeleton": self.skeleton.model_dump()})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "PartRecord":
        rows, facts = _decode(data, where)
        skeleton = Manifest.model_validate(facts.pop("skeleton"))
        return cls(skeleton=skeleton, rows=rows, **facts)


_PART_FACTS = ("part", "num_parts", "tree_digest", "job_digest", "head", "num_pooled")


def _encode(rows: pa.Table, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    table = rows.replace_schema_metadata({_KEY: json.dumps(facts, sort_keys=True).encode()})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _decode(data: bytes, where: str) -> tuple[pa.Table, dict[str, Any]]:
    """Raises:
    UserError: the bytes are no record.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
        facts = json.loads(table.schema.metadata[_KEY])
        return table.replace_schema_metadata(None).cast(ROW_SCHEMA), facts
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not a readable record ({first_line(error)}); remove it with `fmad data gc`."
        ) from None
