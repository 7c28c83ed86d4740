"""What a killed prediction had scored already: a file for every shard of the images, beside the results.

    <out>/partial/stamp.json           what is being predicted with what
    <out>/partial/part-000012.parquet  the rows of a shard, whose pictures are all there

A shard is a fixed part of the sorted images that one rank scores whole, and its number alone says which. `stamp.json`
beside the table says that a prediction is complete.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from fmad_dist.errors import UserError
from fmad_dist.prediction.pictures import MAPS, OVERLAYS
from fmad_dist.prediction.table import CSV_NAME, TABLE_NAME, parquet_bytes, read_parquet
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.scratch import remove_abandoned
from fmad_dist.storage.stamp import STAMP_NAME, Stamp, changed_files, read_stamp, write_stamp

FOLDER, FORMAT = "partial", "fmad-prediction/1"


class Parts:
    """The files of one prediction, which `key` stands for; `facts` say in words what it depends on."""

    def __init__(self, out: str, key: str, facts: Mapping[str, str]) -> None:
        self.out, self.key, self.facts = Store(out), key, {"format": FORMAT, **facts}
        self.store = self.out.child(FOLDER)

    def begin(self, overwrite: bool) -> pa.Table | None:
        """The finished table if everything was done before. Only the main rank calls, before any rank saves.

        Raises:
            UserError: there is another prediction, or a changed one, and `overwrite` does not allow to remove it.
        """
        done, begun = read_stamp(self.out), read_stamp(self.store)
        if done is not None and done.facts.get("format") != FORMAT:
            raise UserError(f"{self.out.url}: holds something else than a prediction; choose another --out.")
        if overwrite and (done or begun):
            self._remove_all()
            done = begun = None
        for stamp in (done, begun):
            if stamp is not None and stamp.key != self.key:
                raise UserError(
                    f"{self.out.url}: holds a prediction with {self._difference(stamp)}; choose another --out, or give "
                    "--overwrite to remove it and start again."
                )
        if done is not None:
            return self._finished(done)
        if self.out.is_local:
            remove_abandoned(Path(self.out.path()).rglob(f"{TEMPORARY_PREFIX}*"))
        if begun is None:
            write_stamp(self.store, self.key, self.facts, ())
        return None

    def done(self) -> set[int]:
        """The numbers of the shards that are scored."""
        names = self.store.list()
        return {int(name[5:11]) for name in names if name.startswith("part-") and name.endswith(".parquet")}

    def save(self, number: int, rows: pa.Table) -> None:
        self.store.write(_part(number), parquet_bytes(rows))

    def collect(self, num_shards: int) -> pa.Table:
        """All rows in the order of the shards, when all ranks have ended. Only the main rank calls.

        Raises:
            UserError: a shard is missing.
        """
        missing = sorted(set(range(num_shards)) - self.done())
        if missing:
            raise UserError(
                f"{self.store.url_of(_part(missing[0]))}: one of {len(missing)} missing parts; --out must be a "
                "storage that all nodes share."
            )
        return pa.concat_tables([read_parquet(self.store.read(_part(number))) for number in range(num_shards)])

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write the results, stamp them, and remove the parts."""
        for name, data in files.items():
            self.out.write(name, data)
        write_stamp(self.out, self.key, self.facts, tuple(files))
        self._clear()

    def _clear(self) -> None:
        self.store.remove_all(self.store.list())
        if self.out.is_local:
            with suppress(OSError):
                Path(self.store.path()).rmdir()

    def _finished(self, stamp: Stamp) -> pa.Table:
        changed = changed_files(self.out, stamp)
        if changed:
            raise UserError(
                f"{self.out.url_of(changed[0])}: changed after it was written; give --overwrite to score again."
            )
        if self.store.exists():
            self._clear()  # a kill came before
        return read_parquet(self.out.read(TABLE_NAME))

    def _difference(self, stamp: Stamp) -> str:
        said = stamp.facts
        names = [name for name in self.facts if said.get(name) != self.facts[name]]
        if not names:
            return "other settings"
        return " and ".join(f"{name} {said.get(name, '?')} instead of {self.facts[name]}" for name in names)

    def _remove_all(self) -> None:
        """What predictions write; the stamps last, so that a kill leaves a folder that is still known as theirs."""
        for name in (MAPS, OVERLAYS, TABLE_NAME, CSV_NAME):
            if self.out.exists(name):
                self.out.remove(name)
        parts = self.store.list() if self.store.exists() else []
        self.store.remove_all([name for name in parts if name != STAMP_NAME])
        for store in (self.store, self.out):
            store.remove_all([STAMP_NAME] if store.exists(STAMP_NAME) else [])


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"
