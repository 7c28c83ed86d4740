"""Portable checkpoints at any URL: named fp32 tensors without a trace of world size or ZeRO stage.

    step-00000500/
        tensors-00003-00000.safetensors ...   `<kind>/<parameter>`, written by rank 3
        checkpoint.json                       written last: position, specs, size and SHA-256 of every file
A folder without checkpoint.json is not a checkpoint, so one exists completely or not at all, on every storage.
There is no state of random generators in it: noise, times and labels are keyed by (seed, position in the stream).
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.storage.store import PATIENCE_S, Store

FORMAT = "fmad-checkpoint/3"
STATE_NAME = "checkpoint.json"
_FOLDER = re.compile(r"step-(\d{8})(?:/|$)")


@dataclass(frozen=True)
class TrainState:
    """Where training stands after `step` optimizer steps."""

    step: int
    ema_updates: int
    plan_digest: str
    network: dict[str, Any]  # NetworkSpec
    objective: dict[str, Any]  # ObjectiveConfig
    coupling: tuple[float, float]  # sums behind the coupling's strength, merged over ranks
    tracking_run: str | None
    config: dict[str, Any]  # the resolved RunConfig
    position: int  # of the stream, at which the next step begins


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What checkpoint.json says of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as its checkpoint.json describes it."""

    store: Store  # its folder
    state: TrainState
    files: dict[str, StoredFile]

    @property
    def digest(self) -> str:
        """SHA-256 that stands for all its tensors."""
        parts = sorted(f"{name} {file.sha256}" for name, file in self.files.items())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Damaged(UserError):
    """A checkpoint cannot be read; an older one may be."""


class Checkpoints:
    """All checkpoints of a run."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self.store = Store(url, patience_s)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        return list(self.published())

    def published(self) -> dict[int, datetime]:
        """Return when each complete checkpoint was completed, by its step, ascending."""
        entries = self.store.entries() if self.store.exists() else []
        found = {entry.name: entry.modified for entry in entries if entry.name.endswith(f"/{STATE_NAME}")}
        return {step: written for name, written in found.items() for step in _steps_of([name])}

    def folder(self, step: int) -> Store:
        return self.store.child(f"step-{step:08d}")

    def read(self, step: int) -> Checkpoint:
        """Read the checkpoint.json of a step.

        Raises:
            Damaged: it is not one.
            UserError: the storage does not answer; that is no reason to take an older checkpoint.
        """
        folder = self.folder(step)
        data = folder.read(STATE_NAME)
        try:
            body = json.loads(data)
            if body.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            files = {name: StoredFile(**file) for name, file in body.pop("files").items()}
            if "position" not in body:  # written before a run could change its batch
                body["position"] = body["step"] * body["config"]["train"]["global_batch"]
            state = TrainState(**body | {"coupling": tuple(body["coupling"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = folder.url_of(STATE_NAME)
            raise Damaged(f"{where}: not a readable checkpoint ({error}); remove the folder {folder.url}.") from None
        return Checkpoint(folder, state, files)

    def newest_readable(self) -> Checkpoint | None:
        """Return the newest whose checkpoint.json can be read; its tensors are not looked at."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except Damaged:
                continue
        return None

    def publish(self, state: TrainState, files: dict[str, StoredFile]) -> None:
        """Write the checkpoint.json that makes a checkpoint of files that are in its folder already."""
        body = {"format": FORMAT, **asdict(state), "files": {name: asdict(file) for name, file in files.items()}}
        self.folder(state.step).write(STATE_NAME, json.dumps(body, indent=1).encode())

    def remove(self, step: int) -> None:
        """Remove the folder of `step`, its checkpoint.json first: what a kill leaves is not a checkpoint."""
        folder = self.folder(step)
        names = folder.list() if folder.exists() else []
        folder.remove_all([name for name in names if name == STATE_NAME])
        if folder.is_local:  # with what a killed write left, which is not listed
            shutil.rmtree(folder.path(), ignore_errors=True)
        else:
            folder.remove_all([name for name in names if name != STATE_NAME])

    def incomplete(self) -> set[int]:
        """Steps of the folders that a save is filling, or that a killed or failed one has left."""
        names = self.store.list() if self.store.exists() else []
        if self.store.is_local:  # a folder may hold nothing that is listed
            names += [path.name for path in Path(self.store.path()).glob("step-*")]
        return _steps_of(names) - set(self.steps())

    def remove_incomplete(self) -> None:
        """Remove what killed or failed saves left behind."""
        for step in self.incomplete():
            self.remove(step)

    def prune(self, keep_last: int, keep_every: int | None) -> None:
        """Remove all but the newest `keep_last` and those of every multiple of `keep_every` steps."""
        for step in self.steps()[:-keep_last]:
            if not (keep_every and step % keep_every == 0):
                self.remove(step)


def _steps_of(names: list[str]) -> set[int]:
    """Return the steps whose folders these names are or lie in; other folders beside them are not ours."""
    return {int(found[1]) for name in names if (found := _FOLDER.match(name))}


def check_belongs(checkpoint: Checkpoint, network: NetworkSpec, objective: ObjectiveConfig, plan_digest: str) -> None:
    """Check that a checkpoint is of the run that goes on from it.

    Raises:
        UserError: it is of another architecture, objective or sample stream.
    """
    state, where = checkpoint.state, checkpoint.store.url
    _check_same(where, "architecture", state.network, asdict(network))
    _check_same(where, "objective", state.objective, objective.model_dump(mode="json"))
    if state.plan_digest != plan_digest:
        raise UserError(
            f"{where}: its sample stream is another one (manifests, data.holdout, data.temperature, weights or "
            "train.seed changed); choose another `name` for the run, or set them as they were."
        )


def _check_same(where: str, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        there = ", ".join(f"{key} {found.get(key)}" for key in differing)
        here = ", ".join(f"{key} {wanted.get(key)}" for key in differing)
        raise UserError(
            f"{where}: a checkpoint of another {what} ({there}; the configuration says {here}); choose another `name` "
            "for the run, or set it as it was."
        )
