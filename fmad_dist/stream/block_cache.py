"""A folder of blocks on local disk, shared by all processes and jobs of a node, with a size limit.

A block is a file named by its content's key; it appears by rename, so it is whole or absent. The least recently used
blocks go when the limit is passed: a hit sets the file's time, and whoever notices that the folder is too large sweeps
it, one process at a time. A block may vanish at any moment and is then fetched again. Blocks of which several processes
need the same are fetched by one of them while the others wait; a lock dies with its process.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TypeVar

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage.scratch import TEMPORARY_PREFIX, folder_lock, published, remove_abandoned

T = TypeVar("T")

_LOCKS = 4096
_TOUCH_AFTER_S = 60  # how exact "recently used" is
_SWEEP_SHARE = 0.01  # of the limit: bytes that this process writes between two looks at the whole folder
_SWEEP_TO = 0.9  # of the limit


class BlockCache:
    """Blocks below `folder`, at most about `limit` bytes (a hundredth more per process between two sweeps).

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder).expanduser()
        self.limit = limit
        self._written = limit  # the first write looks at what others left
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def has(self, key: str) -> bool:
        return self._path(key).exists()

    def get(self, key: str, start: int, stop: int, fetch: Callable[[], bytes]) -> bytes:
        """Bytes [start, stop) of the block, which is fetched and kept if it is not there."""
        found = self._read(key, start, stop)
        if found is not None:
            return found
        with self._lock_file(key) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the only process that fetches this block
            found = self._read(key, start, stop)
            if found is not None:
                return found
            data = fetch()
            self._keep(key, data)
        return data[start:stop]

    def fill(self, blocks: Mapping[str, T], fetch: Callable[[Sequence[T]], Sequence[bytes]]) -> None:
        """Fetch, in one call, all blocks that are not there and that no other process is fetching.

        `blocks` maps keys to what `fetch` takes.
        """
        with ExitStack() as claimed:
            missing = [key for key in blocks if not self.has(key) and self._claim(key, claimed) and not self.has(key)]
            if missing:
                for key, data in zip(missing, fetch([blocks[key] for key in missing]), strict=True):
                    self._keep(key, data)

    def drop(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def num_bytes(self) -> int:
        return sum(size for _, size, _ in self._blocks())

    def _read(self, key: str, start: int, stop: int) -> bytes | None:
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                if time.time() - os.fstat(file.fileno()).st_mtime > _TOUCH_AFTER_S:
                    os.utime(path)
                return os.pread(file.fileno(), stop - start, start)
        except FileNotFoundError:
            return None

    def _keep(self, key: str, data: bytes) -> None:
        try:
            with published(self._path(key)) as scratch:
                scratch.write_bytes(data)
        except OSError as error:
            raise self._unwritable(error) from None
        self._written += len(data)
        if self._written >= _SWEEP_SHARE * self.limit:
            self._written = 0
            with suppress(PermissionError):  # another user's lock: that one sweeps
                self._sweep()

    def _sweep(self) -> None:
        """Remove the blocks used longest ago until the folder is below nine tenths of its limit."""
        with suppress(BlockingIOError), folder_lock(self.folder, wait=False):  # otherwise somebody is at it
            blocks = sorted(self._blocks())
            total = sum(size for _, size, _ in blocks)
            if total <= self.limit:
                return
            for _, size, path in blocks:
                if total <= _SWEEP_TO * self.limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _blocks(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every block; what killed processes left unfinished is removed."""
        for path in self.folder.glob("??/*"):
            if path.name.startswith(TEMPORARY_PREFIX):
                remove_abandoned([path])
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _claim(self, key: str, claimed: ExitStack) -> bool:
        """Take the block's lock until `claimed` ends, unless somebody has it."""
        lock = claimed.enter_context(self._lock_file(key))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _lock_file(self, key: str) -> IO[str]:
        number = int(hashlib.sha256(key.encode()).hexdigest(), 16) % _LOCKS
        try:
            return open(self.folder / "locks" / f"{number:04d}", "a")
        except OSError as error:
            raise self._unwritable(error) from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"data.cache {self.folder}: cannot be written ({first_line(error)}); choose another folder.")
