"""One conversion divided over the jobs of an array, and the sealing that makes one dataset of the parts.

Part i of n takes the i-th contiguous slice of every split, reads only its own files and leaves a record under `parts/`.
Sealing needs the records alone, not the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.conversion.records import PartRecord, with_shards
from data_tools.readers.source_tree import SourceImage
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import SPLITS

FOLDER = "parts"


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th of `total` parts, counted from 1; the only one is a whole conversion."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse `3/8`; another form, or a part out of range, is refused (UserError)."""
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total) <= 999):
            raise UserError(f"--part {text!r}: write it as i/n with 1 <= i <= n <= 999, for example 3/8.")
        return cls(int(number), int(total))

    @property
    def is_whole(self) -> bool:
        return self.total == 1

    def own(self, images: Sequence[SourceImage]) -> list[SourceImage]:
        """This part's images, train first, each split in its own order."""
        own = []
        for split in SPLITS:
            listed = [image for image in images if image.split == split]
            count = len(listed)
            own += listed[(self.number - 1) * count // self.total : self.number * count // self.total]
        return own

    def prefix(self, split: str) -> str:
        """What the names of this part's shards of a split start with."""
        return split if self.is_whole else f"{split}-p{self.number:03d}of{self.total:03d}"


WHOLE = Part()


def record_name(tree_digest: str, number: int, total: int) -> str:
    return f"{FOLDER}/{tree_digest[:16]}-{number:03d}of{total:03d}.parquet"


def find_record(store: Store, part: Part, tree_digest: str) -> PartRecord | None:
    """The record that an earlier conversion of this part left, if there is a readable one."""
    name = record_name(tree_digest, part.number, part.total)
    try:
        return PartRecord.from_bytes(store.read(name), store.url_of(name))
    except UserError:
        return None


def load_records(store: Store) -> list[PartRecord]:
    """All records of one conversion, part 1 first.

    Raises:
        UserError: there are none, some are missing, or they belong to different conversions.
    """
    where = store.url_of(FOLDER)
    names = store.list(FOLDER)
    if not names:
        raise UserError(f"{where}: no parts to seal; run `fmad data convert --part i/n` for every i first.")
    records = [PartRecord.from_bytes(store.read(name), store.url_of(name)) for name in names]
    if len({(record.tree_digest, record.num_parts) for record in records}) > 1:
        kinds = ", ".join(sorted({f"{r.tree_digest[:16]} in {r.num_parts}" for r in records}))
        raise UserError(
            f"{where}: parts of different conversions ({kinds}), because the source, the options or the number of "
            "parts changed; run `fmad data gc` with a short --older-than, then convert all parts again."
        )
    total = records[0].num_parts
    missing = sorted(set(range(1, total + 1)) - {record.part for record in records})
    if missing:
        parts = ", ".join(f"{number}/{total}" for number in missing[:8])
        raise UserError(
            f"{where}: {len(missing)} of {total} parts are missing ({parts}); convert them, then seal again."
        )
    return sorted(records, key=lambda record: record.part)


def merged_rows(records: Sequence[PartRecord]) -> pa.Table:
    """The rows of all parts; their `shard` counts through the shards of all parts in order."""
    counts = [len(record.skeleton.shards) for record in records]
    starts = [0, *accumulate(counts)]
    return pa.concat_tables(
        with_shards(record.rows, pc.add(record.rows.column("shard"), pa.scalar(start, pa.int32())))
        for record, start in zip(records, starts[:-1], strict=True)
    )
