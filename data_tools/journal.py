"""The finished shards of a conversion that is not finished: where the next run goes on.

Records lie at the destination under `journal/<job>/000000.parquet, ...`, one per shard in the order of writing, each
put after its shard is stored and verified. The same source and options make the same shards in the same order, so a
run that finds records needs to do only what follows them.
"""

from collections.abc import Sequence

from data_tools.readers.source import SourceImage
from data_tools.records import ShardRecord
from fmad_dist.errors import UserError
from fmad_dist.storage import Store

FOLDER = "journal"


class Journal:
    """The records of one job: a conversion of one source with one set of options, or a part of one."""

    def __init__(self, store: Store, job_digest: str) -> None:
        self.store = store
        self.folder = f"{FOLDER}/{job_digest[:16]}"

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
            self.store.remove_empty_folders(FOLDER)

    def _name(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.parquet"
