"""Files at a dataset's URL that nothing needs any more: shards and indexes of replaced manifests, leftovers of runs.

A conversion that may still be running (its journal or part record is young) keeps all that it names.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from data_tools import journal, parts
from data_tools.records import PartRecord, ShardRecord
from data_tools.sealing import Existing
from fmad_dist.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.storage.store import Entry
from fmad_dist.stream.manifest import MANIFEST_NAME, Manifest

LIVE_FOR = timedelta(hours=24)
_OURS = re.compile(
    r"shards/(train|val|test)-(p\d{3}of\d{3}-)?\d{6}-[0-9a-f]{16}\.tar|index-[0-9a-f]{16}\.parquet"
    rf"|{journal.FOLDER}/[0-9a-f]{{16}}/\d{{6}}\.parquet|{parts.FOLDER}/[0-9a-f]{{16}}-\d{{3}}of\d{{3}}\.parquet"
)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that no manifest and no running conversion names; only ours may be removed."""

    name: str
    num_bytes: int
    modified: datetime  # UTC
    ours: bool


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove."""

    removed: tuple[Garbage, ...]
    kept: int  # files of ours that are not old enough
    foreign: int  # files that are not ours
    num_uploads: int  # unfinished multipart uploads that were given up

    @property
    def num_bytes(self) -> int:
        return sum(found.num_bytes for found in self.removed)


def collect(url: str, older_than: timedelta = LIVE_FOR, dry_run: bool = False) -> Collection:
    """Remove what nothing names and what is older than `older_than`, records before the shards that they name.

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
    ours = [entry for entry in found if entry.ours]
    old = [entry for entry in ours if is_older(entry.modified, now, older_than)]
    num_uploads = 0
    if not dry_run:
        for records in (True, False):
            store.remove_all([entry.name for entry in old if _is_record(entry.name) == records])
        num_uploads = store.abort_uploads(now - older_than if older_than else datetime.max.replace(tzinfo=UTC))
        if store.is_local:
            for folder in (journal.FOLDER, parts.FOLDER):
                store.remove_empty_folders(folder)
    return Collection(tuple(old), len(ours) - len(old), len(found) - len(ours), num_uploads)


def find_garbage(store: Store, manifest: Manifest | None, older_than: timedelta) -> list[Garbage]:
    """All files at the store that neither the manifest nor a conversion younger than `older_than` names."""
    entries = store.entries()
    needed = {MANIFEST_NAME}
    if manifest is not None:
        needed |= {manifest.index.name, *(shard.name for shard in manifest.shards)}
    needed |= set(_named_by_live_runs(store, entries, older_than))
    return [
        Garbage(entry.name, entry.num_bytes, entry.modified, bool(_OURS.fullmatch(entry.name)))
        for entry in entries
        if entry.name not in needed
    ]


def _is_record(name: str) -> bool:
    return name.startswith((f"{journal.FOLDER}/", f"{parts.FOLDER}/"))


def is_older(modified: datetime, now: datetime, limit: timedelta) -> bool:
    """Whether a file is at least `limit` old; at a limit of zero every file is, whatever the storage's clock says."""
    return not limit or now - modified >= limit


def _named_by_live_runs(store: Store, entries: Sequence[Entry], older_than: timedelta) -> Iterator[str]:
    """Records of runs whose newest record is younger than the limit, and the shards that they name."""
    now = datetime.now(UTC)
    runs: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if _OURS.fullmatch(entry.name) and _is_record(entry.name):
            run = entry.name.rpartition("/")[0] if entry.name.startswith(journal.FOLDER) else entry.name.split("-")[0]
            runs[run].append(entry)
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
        if name.startswith(journal.FOLDER):
            return [ShardRecord.from_bytes(data, where).shard.name]
        return [shard.name for shard in PartRecord.from_bytes(data, where).skeleton.shards]
    except UserError:
        return []
