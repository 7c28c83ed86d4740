"""Save a checkpoint while training goes on: every rank copies its share to memory and a thread uploads it.

Parameters are dealt to the ranks, so copying, memory and uploading are divided by their number: a rank holds at most
16 bytes per parameter / ranks, and one snapshot at a time. The main process publishes the checkpoint when the parts of
all ranks are in the storage; it learns that from the storage, so that threads need no collectives.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from safetensors.torch import save
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.training.checkpoint import Checkpoints, StoredFile, TrainState
from fmad_dist.training.engine import Engine
from fmad_dist.training.weights import MOMENTS, WEIGHT, ShardedEma, full_tensors

FILE_BYTES = 256_000_000
PARTS_PATIENCE_S = 1800.0  # how long the main process waits for the slowest rank
POLL_S = 0.2


class CheckpointWriter:
    """Saves checkpoints in the background; every rank has one and calls its methods at the same steps."""

    def __init__(self, checkpoints: Checkpoints, world: World, keep_last: int, keep_every: int | None) -> None:
        self.checkpoints = checkpoints
        self.world = world
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, engine: Engine, ema: ShardedEma, state: TrainState) -> None:
        """Copy the state now, which stops training for the copy alone, and upload it in the background.

        Raises:
            UserError: the save before this one failed.
        """
        self.wait()
        if self.world.is_main:
            self.checkpoints.remove_incomplete()
            self.checkpoints.remove(state.step)  # the same step again, after a resume
        self.world.barrier()  # nobody writes before the main process has cleaned up
        parts = list(in_parts(all_tensors(engine, ema, self._is_mine)))
        self._thread = threading.Thread(target=self._run, args=(parts, state), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what a save in the background met.

        Raises:
            UserError: it failed.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until this rank's upload is complete, and on the main process the checkpoint.

        Raises:
            UserError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def finish(self) -> None:
        """Wait until the checkpoint is complete, on every rank; every rank calls.

        Raises:
            UserError: the save failed.
        """
        self.wait()
        self.world.barrier()

    def _is_mine(self, position: int) -> bool:
        return position % self.world.size == self.world.rank

    def _run(self, parts: list[dict[str, Tensor]], state: TrainState) -> None:
        try:
            upload_parts(self.checkpoints, state.step, self.world.rank, parts)
            if self.world.is_main:
                files = collect_parts(self.checkpoints, state.step, self.world.size)
                self.checkpoints.publish(state, files)
                folder = self.checkpoints.folder(state.step)
                folder.remove_all([_part_name(rank) for rank in range(self.world.size)])
                self.checkpoints.prune(self.keep_last, self.keep_every)
        except Exception as error:  # raised again in the training loop
            self._error = error


def all_tensors(engine: Engine, ema: ShardedEma, is_mine: Callable[[int], bool]) -> Iterator[tuple[str, Tensor]]:
    """Yield (`<kind>/<parameter>`, fp32 CPU tensor) of the parameters at positions that are mine; every rank calls."""
    for kind in (WEIGHT, *MOMENTS):
        yield from ((f"{kind}/{name}", tensor) for name, tensor in full_tensors(engine, kind, is_mine))
    with ema.swapped_in():
        yield from ((f"ema/{name}", tensor) for name, tensor in full_tensors(engine, WEIGHT, is_mine))


def in_parts(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Group tensors to files of about FILE_BYTES; the encoding of one file is all that is held beside them."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors:
        part[name] = tensor
        if sum(one.nbytes for one in part.values()) >= FILE_BYTES:
            yield part
            part = {}
    if part:
        yield part


def upload_parts(checkpoints: Checkpoints, step: int, rank: int, parts: list[dict[str, Tensor]]) -> None:
    """Write the files of one rank and then a note that they are complete; `parts` is emptied on the way."""
    folder = checkpoints.folder(step)
    files = {}
    for number in range(len(parts)):
        data = save(parts.pop(0))
        name = f"tensors-{rank:05d}-{number:05d}.safetensors"
        folder.write(name, data)
        files[name] = asdict(StoredFile(len(data), hashlib.sha256(data).hexdigest()))
    folder.write(_part_name(rank), json.dumps(files).encode())


def collect_parts(checkpoints: Checkpoints, step: int, world_size: int) -> dict[str, StoredFile]:
    """Return the files of all ranks, as soon as all are written.

    Raises:
        UserError: a rank did not finish in time.
    """
    folder = checkpoints.folder(step)
    files: dict[str, StoredFile] = {}
    deadline = time.monotonic() + PARTS_PATIENCE_S
    for rank in range(world_size):
        while not folder.exists(_part_name(rank)):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{folder.url}: rank {rank} did not finish writing its part of the checkpoint within "
                    f"{PARTS_PATIENCE_S:.0f} s; all nodes must write to the same storage."
                )
            time.sleep(POLL_S)
        part = json.loads(folder.read(_part_name(rank)))
        files |= {name: StoredFile(**file) for name, file in part.items()}
    return files


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"
