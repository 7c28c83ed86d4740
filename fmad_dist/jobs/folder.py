"""The folder of a job's results, its `--out`: what is there already, and what it was made from.

<out>/stamp.json          written last: the key of all inputs, the same in words, and digests of the result files
<out>/partial/stamp.json  written first: the key of the job that is under way
<out>/partial/*           what was found until a kill, see partial.py; all of it goes when the job is done
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmad_dist.base.errors import UserError
from fmad_dist.jobs.partial import SUFFIX
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.scratch import check_writable, remove_abandoned
from fmad_dist.storage.stamp import STAMP_NAME, Stamp, changed_files, key_of, read_stamp, write_stamp

PARTIAL = "partial"
# Of this version; and of fmad 0.1, which kept what it found in other files.
OURS = re.compile(r"stamp\.json|[\w-]+\.(part|safetensors)|part-\d+\.parquet|[0-9a-f]{16}/[\w-]+\.state")
ADVICE = "choose another --out, or give --overwrite to replace it"


@dataclass(frozen=True)
class Identity:
    """What a job does with what: two jobs of one identity have the same results."""

    kind: str  # with its article: "an evaluation"
    mark: str  # the name of an input that every stamp of this kind has, and none of another kind
    key: str  # stands for all inputs
    inputs: Mapping[str, str]  # the same in words, for the sentence that refuses another job
    outputs: Mapping[str, str] = field(default_factory=dict)  # what else is written of every image, by name its URL
    removed: tuple[str, ...] = ()  # files and folders that go before another job writes into the same folder

    @property
    def partial_key(self) -> str:
        """Stands for what is written, too: an image of a part has all its outputs."""
        return key_of({"key": self.key, "outputs": dict(self.outputs)}) if self.outputs else self.key


class JobFolder:
    """The folder `out`, a path or URL, as the job of this identity finds it and leaves it."""

    def __init__(self, out: str, identity: Identity) -> None:
        self.store, self.identity = Store(out), identity
        self.partial = self.store.child(PARTIAL)

    def begin(self, overwrite: bool) -> bool:
        """Whether the whole job was done before; else the folder is ready for all ranks. Only the main rank calls.

        Raises:
            UserError: the folder cannot be written, or holds something else than a job of this kind; or, without
                `overwrite`, another one, or this one with files that were changed.
        """
        done, begun = self._stamp_in(self.store), self._stamp_in(self.partial)
        other_done = done is not None and done.key != self.identity.key
        other_begun = begun is not None and begun.key != self.identity.partial_key
        if not overwrite:
            if other_done or (other_begun and self._left_something()):
                raise self._refusal(done if other_done else begun)
            if done is None and self.store.exists(STAMP_NAME):
                raise UserError(f"{self.store.url_of(STAMP_NAME)}: not a stamp of fmad, or damaged; {ADVICE}.")
            if done is not None and self.identity.outputs.items() <= done.facts.items():
                self._check_unchanged(done)
                self._clear()
                return True
        if self.store.is_local:
            check_writable(Path(self.store.path()), "--out")
            if begun is not None:
                remove_abandoned(Path(self.store.path()).rglob(f"{TEMPORARY_PREFIX}*"))
        if other_done or other_begun:
            self._make_room(other_begun)
        write_stamp(self.partial, self.identity.partial_key, {**self.identity.inputs, **self.identity.outputs}, ())
        return False

    def check_shared(self) -> None:
        """Whether this rank sees what the main one began.

        Raises:
            UserError: it does not.
        """
        if not self.partial.exists(STAMP_NAME):
            where = self.partial.url_of(STAMP_NAME)
            raise UserError(f"{where}: not seen by all processes; --out must be a storage that all nodes share.")

    def finish(self, names: Sequence[str], facts: Mapping[str, str]) -> None:
        """The named result files are complete: stamp them, and remove what was kept in case of a kill."""
        write_stamp(self.store, self.identity.key, {**facts, **self.identity.outputs}, names)
        self._clear()

    def _stamp_in(self, store: Store) -> Stamp | None:
        found = read_stamp(store)
        if found is not None and self.identity.mark not in found.facts:
            raise UserError(f"{self.store.url}: holds something else than {self.identity.kind}; choose another --out.")
        return found

    def _left_something(self) -> bool:
        """Whether the other job that was begun here left what would be lost, or mixed up with what this one writes."""
        has_parts = any(name.endswith(SUFFIX) for name in self.partial.list())
        return has_parts or any(map(self.store.exists, self.identity.removed))

    def _refusal(self, other: Stamp | None) -> UserError:
        said, wanted = other.facts if other else {}, {**self.identity.inputs, **self.identity.outputs}
        pairs = {name: (said.get(name, "unknown"), value) for name, value in wanted.items()}
        changed = [f"{name} {old} instead of {new}" for name, (old, new) in pairs.items() if old != new]
        what = " and ".join(changed) or "other settings"
        return UserError(f"{self.store.url}: holds {self.identity.kind} with {what}; {ADVICE}.")

    def _check_unchanged(self, done: Stamp) -> None:
        changed = changed_files(self.store, done)
        if changed:
            raise UserError(
                f"{self.store.url_of(changed[0])}: changed after it was written, or is missing; give --overwrite to "
                "score again."
            )

    def _make_room(self, other_begun: bool) -> None:
        """Remove what another job would leave among the results; stamps last, so that a kill leaves what is known."""
        for name in self.identity.removed:
            if self.store.exists(name):
                self.store.remove(name)
        if other_begun:
            self._clear()
        if self.identity.removed and self.store.exists(STAMP_NAME):
            self.store.remove(STAMP_NAME)

    def _clear(self) -> None:
        if self.partial.exists():
            self.partial.remove_all([name for name in self.partial.list() if OURS.fullmatch(name)])  # the stamp last
        if self.store.is_local:
            self.store.remove_empty_folders(PARTIAL)
