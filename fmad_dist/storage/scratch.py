"""Local scratch files that say whether their owner still lives.

A scratch file is locked (flock) as long as its process has it open, and the kernel drops the lock when the process
dies however it dies. So whoever finds a scratch file can tell a leftover from the work of a running neighbour.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmad_dist.errors import UserError

TEMPORARY_PREFIX = ".tmp-"


def check_writable(folder: Path, setting: str) -> None:
    """Make a folder, which `setting` names.

    Raises:
        UserError: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another {setting}.") from None


def open_scratch(folder: Path | None, suffix: str = "") -> tuple[int, Path]:
    """A new locked scratch file in `folder` (None: the system's temporary folder): its descriptor and its path."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=folder)
    with suppress(OSError):  # a filesystem without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle, Path(name)


def passing_folder(prefix: str) -> Path:
    """A new folder in the system's temporary one that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_abandoned(path: Path) -> bool:
    """Whether no living process holds this scratch file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # it went away meanwhile, or is not ours to touch
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def remove_abandoned(found: Iterable[Path]) -> int:
    """Remove the scratch files among these paths that no living process holds; returns how many there were."""
    leftovers = [path for path in found if path.is_file() and is_abandoned(path)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A scratch path beside `target` that is synced and renamed to it when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = open_scratch(target.parent)
    try:
        yield scratch
        os.fsync(handle)
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def folder_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Alone in `folder` among all processes that ask for its lock. Without `wait` a lock that another process holds
    raises BlockingIOError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # a filesystem without locks
            pass
        yield
    finally:
        os.close(handle)
