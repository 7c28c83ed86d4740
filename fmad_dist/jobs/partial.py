"""What the ranks of a killed job had found, in files beside its results.

    base.part          what all ranks of earlier starts found, merged
    rank-00003-*.part  what one rank of one start found since that start, written again every `save_s` seconds

A part holds whole shards and says which. It goes into the base before its file is removed, so a part whose shards are
in the base already is one that a kill left between the two. A part that is cut, or of another job, counts as not there:
its shards are scored again.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fmad_dist.storage import Store

FORMAT = "fmad-partial/1"  # other shards, other parts: count it up with every change of how images are dealt
BASE, SUFFIX = "base.part", ".part"


@dataclass(frozen=True)
class Part:
    """The numbers of some shards, and what was found in them as bytes."""

    shards: frozenset[int]
    data: bytes


class PartialResults:
    """The parts of the job that `key` stands for, in `store`; this process writes that of its rank."""

    def __init__(self, store: Store, key: str, rank: int, save_s: float) -> None:
        self.store, self.key, self.save_s = store, key, save_s
        self.name = f"rank-{rank:05d}-{uuid.uuid4().hex}{SUFFIX}"
        self._saved = time.monotonic()

    def collect(self, merge: Callable[[Iterable[bytes]], bytes]) -> Part:
        """What earlier starts found, which becomes the base. Only the main rank calls, before any rank saves."""
        names = sorted(name for name in self.store.list() if name.endswith(SUFFIX)) if self.store.exists() else []
        shards: set[int] = set()
        data = merge(self._data(names, shards))
        base = Part(frozenset(shards), data)
        if names not in ([], [BASE]):
            self._write(BASE, base)
            self.store.remove_all([name for name in names if name != BASE])
        return base

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.save_s

    def save(self, part: Part) -> None:
        """Write all that this rank found since its start, in place of what it wrote before."""
        self._write(self.name, part)
        self._saved = time.monotonic()

    def _write(self, name: str, part: Part) -> None:
        header = {"format": FORMAT, "key": self.key, "sha256": hashlib.sha256(part.data).hexdigest()}
        text = json.dumps(header | {"shards": sorted(part.shards)})
        self.store.write(name, text.encode() + b"\n" + part.data)

    def _data(self, names: Iterable[str], shards: set[int]) -> Iterator[bytes]:
        """The contents of the parts that have no shard twice, one after the other; adds to `shards` what they hold."""
        for name in names:  # the base is the first
            part = self._read(name)
            if part is not None and shards.isdisjoint(part.shards):
                shards |= part.shards
                yield part.data

    def _read(self, name: str) -> Part | None:
        header, _, data = self.store.read(name).partition(b"\n")  # a storage that is away is no reason to score again
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(header)
            wanted = (FORMAT, self.key, hashlib.sha256(data).hexdigest())
            if (found["format"], found["key"], found["sha256"]) == wanted:
                return Part(frozenset(found["shards"]), data)
        return None
