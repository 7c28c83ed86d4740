"""Read the tensors of a checkpoint, verified: one by one from mapped files on every rank, or its averages to memory."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fmad_dist.errors import first_line
from fmad_dist.progress import Progress
from fmad_dist.storage import Store
from fmad_dist.training.checkpoint import Checkpoint, Damaged
from fmad_dist.training.engine import gather_objects
from fmad_dist.world import World


class Tensors:
    """`tensors.get("ema", parameter)` reads one tensor; nothing else is in memory."""

    def __init__(self, files: list[Any]) -> None:
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # not a mapping

    def get(self, kind: str, parameter: str) -> Tensor:
        """float32, in the parameter's shape.

        Raises:
            Damaged: the checkpoint has no such tensor.
        """
        name = f"{kind}/{parameter}"
        if name not in self._where:
            raise Damaged(f"the checkpoint has no tensor {name}.")
        return self._where[name].get_tensor(name)

    def names(self, kind: str) -> list[str]:
        return [name.removeprefix(f"{kind}/") for name in self._where if name.startswith(f"{kind}/")]


@contextmanager
def opened(checkpoint: Checkpoint, world: World) -> Iterator[Tensors]:
    """Every rank calls; files of a remote checkpoint are on a local disk inside the block.

    Raises:
        Damaged: on every rank, if a file is missing or differs from its digest on any node.
        UserError: the storage does not answer.
    """
    from safetensors import SafetensorError, safe_open

    scratch = Path(tempfile.mkdtemp(prefix="fmad-checkpoint-")) if world.local_rank == 0 else None
    try:
        where, problem = None, None
        if scratch is not None:
            try:
                where = fetch_verified(checkpoint, scratch, shown=world.is_main)
            except Damaged as error:  # a storage that does not answer is no reason to take an older checkpoint
                problem = str(error)
        found = gather_objects((world.node, where, problem))
        problems = [problem for _, _, problem in found if problem]
        if problems:
            raise Damaged(problems[0])
        folder = next(path for node, path, _ in found if node == world.node and path is not None)
        with ExitStack() as stack:
            try:
                files = [stack.enter_context(safe_open(folder / name, "pt")) for name in checkpoint.files]
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{checkpoint.store.url}: not readable ({first_line(error)}).") from None
            yield Tensors(files)
            gather_objects(None)  # nobody removes files that others read
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def fetch_verified(checkpoint: Checkpoint, scratch: Path, shown: bool) -> Path:
    """The local folder that holds all files: the checkpoint's own, or `scratch` after a download.

    Raises:
        Damaged: a file is missing or differs from its digest.
    """
    store = checkpoint.store
    with Progress(f"checkpoint {checkpoint.state.step}", len(checkpoint.files), shown=shown) as progress:
        for name, file in checkpoint.files.items():
            if not store.exists(name) or store.size(name) != file.num_bytes:
                raise Damaged(f"{store.url_of(name)}: missing or truncated.")
            if store.is_local:
                digest = store.sha256(name)
            else:
                data = store.read(name)
                digest = hashlib.sha256(data).hexdigest()
                (scratch / name).write_bytes(data)
            if digest != file.sha256:
                raise Damaged(f"{store.url_of(name)}: differs from its digest.")
            progress.advance(1)
    return Path(store.path()) if store.is_local else scratch


def read_averages(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The averaged weights in memory, by parameter; whoever removes the checkpoint afterwards disturbs nobody. Files
    that hold none of them, about three quarters, are not read. For one process.

    Raises:
        Damaged: a file differs from its digest.
        UserError: a file is not there (any more), or the storage does not answer.
    """
    from safetensors.torch import load

    averages: dict[str, Tensor] = {}
    for name, file in checkpoint.files.items():
        if not _may_hold(checkpoint.store, name, file.num_bytes, "ema/"):
            continue
        data = checkpoint.store.read(name)
        if len(data) != file.num_bytes or hashlib.sha256(data).hexdigest() != file.sha256:
            raise Damaged(f"{checkpoint.store.url_of(name)}: differs from its digest.")
        averages |= {key.removeprefix("ema/"): value for key, value in load(data).items() if key.startswith("ema/")}
    return averages


def broadcast(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The main process's float32 CPU tensors on every rank, sent one by one; every rank calls, the others with None."""
    import torch
    import torch.distributed as dist

    shapes = gather_objects(None if tensors is None else {name: one.shape for name, one in tensors.items()})[0]
    if tensors is None:
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    if dist.is_initialized():
        for name in shapes:
            dist.broadcast(tensors[name], 0)
    return tensors


def _may_hold(store: Store, name: str, num_bytes: int, prefix: str) -> bool:
    """Whether a safetensors file names a tensor so, by its header; a damaged file may hold anything."""
    length = int.from_bytes(store.read_range(name, 0, 8), "little")
    try:
        header = json.loads(store.read_range(name, 8, min(8 + length, num_bytes)))
    except ValueError:
        return True
    return any(key.startswith(prefix) for key in header)
