"""What the files of a folder were made from, in a file that is written last.

`stamp.json` has a key that stands for every input, facts for readers, and the SHA-256 of every file it covers. A
folder that has it with the wanted key, and whose files have these digests, need not be made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fmad_dist.storage.store import Store

STAMP_NAME = "stamp.json"


class Stamp(BaseModel):
    """`key` stands for the inputs, `facts` say them in words, `files` has the digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    facts: dict[str, str]
    files: dict[str, str]
    sha256: str = ""  # of the rest; fmad 0.1 wrote none

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def write_stamp(store: Store, key: str, facts: Mapping[str, str], names: Sequence[str]) -> None:
    """Say what the named files, which are complete, were made from."""
    found = Stamp(key=key, facts=dict(facts), files={name: store.sha256(name) for name in names})
    store.write(STAMP_NAME, found.model_copy(update={"sha256": found.digest}).model_dump_json(indent=1).encode())


def read_stamp(store: Store) -> Stamp | None:
    """None if there is none, or one that is damaged or was changed."""
    if not store.exists(STAMP_NAME):
        return None
    try:
        found = Stamp.model_validate_json(store.read(STAMP_NAME))
    except ValidationError:
        return None
    return found if found.sha256 in ("", found.digest) else None


def changed_files(store: Store, stamp: Stamp) -> list[str]:
    """The files that are missing or are not what they were."""
    return [name for name, digest in stamp.files.items() if not store.exists(name) or store.sha256(name) != digest]


def key_of(facts: Mapping[str, Any]) -> str:
    """A key that stands for facts: 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
