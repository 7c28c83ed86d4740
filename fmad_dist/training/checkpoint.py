"""Portable checkpoints: named fp32 tensors without a trace of world size or ZeRO stage.

    checkpoints/step-00000500/
        tensors-00000.safetensors ...   `<kind>/<parameter>`, about 1 GB each, so memory stays bounded
        checkpoint.json                 position, specs and the SHA-256 of every file
The folder is written under a temporary name and renamed when it is complete and on disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fmad_dist.config import ObjectiveConfig
from fmad_dist.errors import UserError
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.storage import TEMPORARY_PREFIX
from fmad_dist.training.ema import ShardedEma
from fmad_dist.training.engine import Engine
from fmad_dist.training.weights import MOMENTS, full_moments, full_weights, restore

FORMAT = "fmad-checkpoint/2"
STATE_NAME = "checkpoint.json"
FILE_BYTES = 1_000_000_000


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


def save_checkpoint(folder: Path, engine: Engine, ema: ShardedEma, state: TrainState, keep: int, is_main: bool) -> None:
    """Write `folder`/step-<n>; every rank calls, the main process writes. Older ones beyond `keep` are removed."""
    scratch = folder / f"{TEMPORARY_PREFIX}step-{state.step:08d}"
    if is_main:
        _remove_leftovers(folder)
        scratch.mkdir(parents=True)
    files: dict[str, str] = {}
    batch: dict[str, Tensor] = {}
    for name, tensor in _all_tensors(engine, ema):
        if is_main:
            batch[name] = tensor
            if sum(t.nbytes for t in batch.values()) >= FILE_BYTES:
                _write_tensors(scratch, batch, files)
    if is_main:
        _write_tensors(scratch, batch, files)
        body = json.dumps({"format": FORMAT, **asdict(state), "files": files}, indent=1)
        _write_synced(scratch / STATE_NAME, body.encode())
        _publish(scratch, folder / f"step-{state.step:08d}")
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_NAME).is_file())


def read_state(path: Path, network: NetworkSpec, objective: ObjectiveConfig, plan_digest: str) -> TrainState:
    """The state of a checkpoint, checked to belong to this run.

    Raises:
        UserError: it was made by another architecture or objective, for another sample stream, or cannot be read.
    """
    where = path / STATE_NAME
    try:
        body = json.loads(where.read_text())
        if body.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        body.pop("files")
        state = TrainState(**body | {"coupling": tuple(body["coupling"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not a readable checkpoint ({error}); remove the folder {path}.") from None
    _check_same(path, "architecture", state.network, asdict(network))
    _check_same(path, "objective", state.objective, objective.model_dump(mode="json"))
    if state.plan_digest != plan_digest:
        raise UserError(
            f"{path}: its sample stream is another one (manifests, data.holdout, data.temperature, weights or "
            "train.seed changed); choose another `name` for the run, or set them as they were."
        )
    return state


def _check_same(path: Path, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        there = ", ".join(f"{key} {found.get(key)}" for key in differing)
        here = ", ".join(f"{key} {wanted.get(key)}" for key in differing)
        raise UserError(
            f"{path}: a checkpoint of another {what} ({there}; the configuration says {here}); choose another `name` "
            "for the run, or set it as it was."
        )


def load_checkpoint(path: Path, engine: Engine, ema: ShardedEma, state: TrainState) -> None:
    """Put the checkpoint into the engine at this world size and ZeRO stage; every rank calls.

    Raises:
        UserError: a file is missing or does not match its digest.
    """
    read: dict[str, dict[str, Tensor]] = {"weight": {}, "ema": {}, **{kind: {} for kind in MOMENTS}}
    for name, tensor in _read_tensors(path):
        kind, parameter = name.split("/", 1)
        read[kind][parameter] = tensor
    restore(engine, ema, read, state.ema_updates, state.step)


def _all_tensors(engine: Engine, ema: ShardedEma) -> Iterator[tuple[str, Tensor]]:
    kinds = [("weight", full_weights(engine)), *((kind, full_moments(engine, kind)) for kind in MOMENTS)]
    yield from chain.from_iterable(((f"{kind}/{name}", t) for name, t in tensors) for kind, tensors in kinds)
    with ema.swapped_in():
        for name, tensor in full_weights(engine):
            yield f"ema/{name}", tensor


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, digest in json.loads((path / STATE_NAME).read_text())["files"].items():
        file = path / name
        if not file.is_file() or _file_digest(file) != digest:
            raise UserError(f"{file}: missing, truncated or changed; remove the folder {path} to use an older one.")
        yield from load_file(file).items()


def _write_tensors(folder: Path, batch: dict[str, Tensor], files: dict[str, str]) -> None:
    if not batch:
        return
    path = folder / f"tensors-{len(files):05d}.safetensors"
    save_file(batch, path)
    with open(path, "rb") as written:
        os.fsync(written.fileno())
    files[path.name] = _file_digest(path)
    batch.clear()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(scratch: Path, target: Path) -> None:
    if target.exists():  # the same step again, after a resume
        shutil.rmtree(target)
    os.replace(scratch, target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path)
