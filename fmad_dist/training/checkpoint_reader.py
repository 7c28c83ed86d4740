"""Read the tensors of a checkpoint, verified: one by one from mapped files on every rank, or its averages to memory."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from torch import Tensor

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError, first_line, writing
from fmad_dist.base.world import World
from fmad_dist.storage import Store
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints, Damaged

if TYPE_CHECKING:
    from safetensors import safe_open

Result = TypeVar("Result")


class Tensors:
    """The tensors of mapped files: `tensors.get("ema", parameter)` reads one, and nothing else is in memory."""

    def __init__(self, files: Sequence["safe_open"]) -> None:
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # not a mapping

    def get(self, kind: str, parameter: str) -> Tensor:
        """Read one tensor, float32 in the parameter's shape.

        Raises:
            Damaged: the checkpoint has no such tensor.
        """
        name = f"{kind}/{parameter}"
        self.check(name)
        return self._where[name].get_tensor(name)

    def check(self, name: str) -> None:
        """Refuse (Damaged) files that lack the tensor `<kind>/<parameter>`."""
        if name not in self._where:
            raise Damaged(f"the checkpoint has no tensor {name}.")

    def names(self, kind: str) -> list[str]:
        return [name.removeprefix(f"{kind}/") for name in self._where if name.startswith(f"{kind}/")]


def newest_usable(checkpoints: Checkpoints, world: World, use: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The newest checkpoint that `use` takes on every rank; a damaged one is named and the one before it is tried.

    The main rank lists and reads them for all: the listing of another node may be older. Every rank calls.

    Raises:
        UserError: on every rank, if there are checkpoints but none can be used, or what `use` refuses.
    """
    steps = decided(world, checkpoints.steps)
    for step in reversed(steps):
        try:
            checkpoint = decided(world, partial(checkpoints.read, step))
            use(checkpoint)
            return checkpoint
        except Damaged as error:
            if world.is_main:
                print(f"checkpoint of step {step} cannot be used: {error} Taking the one before.", file=sys.stderr)
    if steps:
        raise UserError(
            f"{checkpoints.store.url}: none of the {len(steps)} checkpoints can be used; restore one, or choose "
            "another `name` to train anew."
        )
    return None


@contextmanager
def opened(checkpoint: Checkpoint, world: World, wanted: Iterable[str] = ()) -> Iterator[Tensors]:
    """Verify and open a checkpoint; every rank calls. Inside the block files of a remote one are on a local disk.

    Raises:
        Damaged: on every rank, if a file is missing or differs from its digest on any node, or a `wanted` tensor is not
            in them.
        UserError: on every rank, if the storage does not answer one of them.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fmad-checkpoint-")) if world.local_rank == 0 else None
    try:
        with ExitStack() as stack:
            where = agreed(world, lambda: scratch and fetch_verified(checkpoint, scratch, shown=world.is_main))
            folders = {node: folder for node, folder in world.gather((world.node, where)) if folder is not None}
            yield agreed(world, lambda: _mapped(checkpoint, folders[world.node], wanted, stack))
            world.barrier()  # nobody removes files that others read
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def decided(world: World, action: Callable[[], Result]) -> Result:
    """What `action` returns on the main rank, which alone does it, on every rank; every rank calls.

    Raises:
        UserError: on every rank, what it met.
    """
    return cast(Result, world.broadcast(agreed(world, action if world.is_main else lambda: None)))


def agreed(world: World, action: Callable[[], Result]) -> Result:
    """What `action` returns on this rank, if it succeeds on all; every rank calls.

    Raises:
        UserError: the same on every rank, one that any rank met. Damage comes last: a storage that does not answer is
            no reason to take an older checkpoint.
    """
    result, problem = None, None
    try:
        result = action()
    except UserError as error:
        problem = error
    problems = [one for one in world.gather(problem) if one is not None]
    if problems:
        raise min(problems, key=lambda one: isinstance(one, Damaged))
    return cast(Result, result)


def _mapped(checkpoint: Checkpoint, folder: Path, wanted: Iterable[str], stack: ExitStack) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        tensors = Tensors([stack.enter_context(safe_open(folder / name, "pt")) for name in checkpoint.files])
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{checkpoint.store.url}: not readable ({first_line(error)}).") from None
    for name in wanted:
        tensors.check(name)
    return tensors


def fetch_verified(checkpoint: Checkpoint, scratch: Path, shown: bool) -> Path:
    """Return the local folder that holds all files: the checkpoint's own, or `scratch` after a download.

    Raises:
        Damaged: a file is missing or differs from its digest.
        UserError: the storage does not answer, or the disk of `scratch` is too small.
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
                with writing(scratch / name):
                    (scratch / name).write_bytes(data)
            if digest != file.sha256:
                raise Damaged(f"{store.url_of(name)}: differs from its digest.")
            progress.advance(1)
    return Path(store.path()) if store.is_local else scratch


def read_averages(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the averaged weights to memory, by parameter; the checkpoint may be removed afterwards. For one process.

    Files that hold none of them, about three quarters, are not read.

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


def broadcast(tensors: dict[str, Tensor] | None, world: World) -> dict[str, Tensor]:
    """Send the main process's float32 CPU tensors to every rank, one by one; every rank calls, the others with None."""
    import torch
    import torch.distributed as dist

    shapes = world.broadcast(None if tensors is None else {name: one.shape for name, one in tensors.items()})
    assert shapes is not None
    if tensors is None:
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    if world.size > 1:
        for name in shapes:
            dist.broadcast(tensors[name], 0)
    return tensors


def _may_hold(store: Store, name: str, num_bytes: int, prefix: str) -> bool:
    """Whether a safetensors file has a tensor whose name begins so, by its header; a damaged one may have any."""
    length = int.from_bytes(store.read_range(name, 0, 8), "little")
    try:
        header = json.loads(store.read_range(name, 8, min(8 + length, num_bytes)))
    except ValueError:
        return True
    return any(key.startswith(prefix) for key in header)
