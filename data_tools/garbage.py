"""Files at a dataset's URL that nothing needs any more: shards and indexes of replaced manifests, leftovers of runs.

A conversion that may still be running (its journal or part record is young) keeps all that it names.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from data_tools.conversion import array_parts
from data_tools.conversion.records import JOURNAL, PartRecord, ShardRecord
from data_tools.conversion.sealing import Existing
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.storage.store import Entry
from fmad_dist.stream.manifest import MANIFEST_NAME, Manifest

LIVE_FOR = timedelta(hours=24)
_RUN = re.compile(rf"({JOURNAL}|{array_parts.FOLDER})/[0-9a-f]{{16}}")  # records of one conversion
_OURS = re.compile(
    r"shards/(train|val|test)-(p\d{3}of\d{3}-)?\d{6}-[0-9a-f]{16}\.tar|index-[0-9a-f]{16}\.parquet"
    rf"|{JOURNAL}/[0-9a-f]{{16}}/\d{{6}}\.parquet|{array_parts.FOLDER}/[0-9a-f]{{16}}-\d{{3}}of\d{{3}}\.parquet"
)


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove."""

    removed: tuple[Entry, ...]
    kept: int  # files of ours that are not old enough
    foreign: int  # files that are not ours
    num_uploads: int  # unfinished multipart uploads that were given up

    @property
    def num_bytes(self) -> int:
        return sum(found.num_bytes for found in self.removed)


def collect(url: str, older_than: timedelta = LIVE_FOR, dry_run: bool = False) -> Collection:
    """Remove what nothing has named for `older_than`, records before the shards that they name.

    A file that the manifest does not name was named by an earlier one until that was replaced, at the latest when the
    manifest was written; however old the file itself is, who opened the dataset before may still read it.

    Raises:
        UserError: the manifest is damaged, so it is not known what is needed.
    """
    store = Store(url)
    existing = Existing.at(store)
    if existing.raw is not None and existing.manifest is None:
        raise UserError(
            f"{store.url_of(MANIFEST_NAME)}: not readable, so nothing is removed; convert the dataset again first."
        )
    now = datetime.now(UTC)
    found = find_garbage(store, existing.manifest, older_than)
    replaced = store.modified(MANIFEST_NAME) if existing.manifest is not None else datetime.min.replace(tzinfo=UTC)
    ours = [entry for entry in found if is_ours(entry.name)]
    old = [entry for entry in ours if is_older(max(entry.modified, replaced), now, older_than)]
    num_uploads = 0
    if not dry_run:
        for records in (True, False):
            store.remove_all([entry.name for entry in old if bool(_RUN.match(entry.name)) == records])
        num_uploads = store.abort_uploads(now - older_than if older_than else datetime.max.replace(tzinfo=UTC))
        if store.is_local:
            for folder in (JOURNAL, array_parts.FOLDER):
                store.remove_empty_folders(folder)
    return Collection(tuple(old), len(ours) - len(old), len(found) - len(ours), num_uploads)


def parse_age(text: str) -> timedelta:
    """Parse an age: `90s`, `30m`, `24h` or `7d`; another form is refused (UserError)."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise UserError(f"--older-than {text!r}: write a number and a unit, for example 90s, 30m, 24h or 7d.")
    return timedelta(**{units[unit]: int(number)})


def is_ours(name: str) -> bool:
    """Whether a conversion gave a file its name; other files are never removed."""
    return bool(_OURS.fullmatch(name))


def find_garbage(store: Store, manifest: Manifest | None, older_than: timedelta) -> list[Entry]:
    """All files at the store that neither the manifest nor a conversion younger than `older_than` names."""
    entries = store.entries()
    needed = {MANIFEST_NAME}
    if manifest is not None:
        needed |= {manifest.index.name, *(shard.name for shard in manifest.shards)}
    needed |= set(_named_by_live_runs(store, entries, older_than))
    return [entry for entry in entries if entry.name not in needed]


def is_older(modified: datetime, now: datetime, limit: timedelta) -> bool:
    """Whether a file is at least `limit` old; at a limit of zero every file is, whatever the storage's clock says."""
    return not limit or now - modified >= limit


def _named_by_live_runs(store: Store, entries: Sequence[Entry], older_than: timedelta) -> Iterator[str]:
    """Records of runs whose newest record is younger than the limit, and the shards that they name."""
    now = datetime.now(UTC)
    runs: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if (run := _RUN.match(entry.name)) and is_ours(entry.name):
            runs[run[0]].append(entry)
    for records in runs.values():
        if is_older(max(entry.modified for entry in records), now, older_than):
            continue
        for entry in records:
            yield entry.name
            yield from _shards_of(store, entry.name)


def _shards_of(store: Store, name: str) -> list[str]:
    """Shards named by a record; none if it is damaged."""
    try:
        data, where = store.read(name), store.url_of(name)
        if name.startswith(JOURNAL):
            return [ShardRecord.from_bytes(data, where).shard.name]
        return [shard.name for shard in PartRecord.from_bytes(data, where).skeleton.shards]
    except UserError:
        return []
