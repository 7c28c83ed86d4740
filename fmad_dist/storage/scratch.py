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

from fmad_dist.base.errors import UserError, first_line

TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".fmad-lock"  # of a folder; it stays, because who waits for a file that is removed holds another one's lock


_UMASK = os.umask(0o077)  # can only be read by setting it, which is nothing to do beside other threads
os.umask(_UMASK)


def is_passing(name: str) -> bool:
    """Whether the file of this name is not content: the scratch file of a write, or the lock of its folder."""
    return name.startswith(TEMPORARY_PREFIX) or name == LOCK_NAME


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a file which was renamed there survives a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a filesystem that has no such thing
            os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path, setting: str) -> None:
    """Make a folder, which `setting` names; refuse one that cannot be made or written (UserError)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another {setting}.") from None


def check_empty(folder: Path, setting: str, overwrite: bool) -> None:
    """Make a folder, which `setting` names, for files of one kind alone.

    Raises:
        UserError: it cannot be written, or has files and `overwrite` does not allow to replace them.
    """
    check_writable(folder, setting)
    if not overwrite and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; choose another {setting}, or give --overwrite to replace its files.")


def open_scratch(folder: Path | None, suffix: str = "") -> tuple[int, Path]:
    """A new locked scratch file in `folder` (None: the system's temporary folder): its descriptor and its path."""
    while True:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=folder)
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # somebody took it for abandoned before it was locked


def passing_folder(prefix: str) -> Path:
    """A new temporary folder, which is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_if_abandoned(path: Path) -> bool:
    """Remove a scratch file that no living process holds; returns whether this was one."""
    try:
        handle = os.open(path, os.O_RDWR)  # NFS gives no lock on what is open for reading alone
    except OSError:
        return False  # it went away meanwhile, or is not ours to touch
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)  # while it is locked, or a new owner could lock it in between
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def remove_abandoned(found: Iterable[Path]) -> int:
    """Remove the scratch files among these paths that no living process holds; returns how many there were."""
    return sum(remove_if_abandoned(path) for path in found if path.is_file())


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A scratch path beside `target` that is synced and renamed to it when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = open_scratch(target.parent)
    try:
        yield scratch
        os.fsync(handle)
        os.chmod(scratch, 0o666 & ~_UMASK)
        os.replace(scratch, target)
        sync_folder(target.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def published_folder(target: Path, content: str) -> Iterator[Path]:
    """A scratch folder beside `target` that is renamed to it when the block succeeds; `content` names what it holds.

    Raises:
        UserError: `target` holds something already, or cannot be written.
    """
    scratch = target.parent / f"{TEMPORARY_PREFIX}{target.name}"
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target}: is not empty; give a new folder for {content}.")
        shutil.rmtree(scratch, ignore_errors=True)
        yield scratch
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({first_line(error)}); choose another folder.") from None


@contextmanager
def folder_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `folder` among all processes that ask for it.

    Raises:
        BlockingIOError: not `wait`, and another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)  # for writing: NFS gives no lock without
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
