"""Scratch files tell whether their owner lives."""

import errno
import fcntl
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from fmad_dist.storage import Store
from fmad_dist.storage.scratch import folder_lock, open_scratch, remove_abandoned, remove_if_abandoned


def hold_scratch(folder: str, ready: "multiprocessing.Queue[str]") -> None:
    _, path = open_scratch(Path(folder))
    ready.put(str(path))
    time.sleep(600)


def test_a_scratch_file_is_abandoned_when_its_process_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ready = context.Queue()
    process = context.Process(target=hold_scratch, args=(str(tmp_path), ready))
    process.start()
    path = Path(ready.get(timeout=60))
    assert not remove_if_abandoned(path)
    process.kill()
    process.join()
    assert remove_if_abandoned(path)


def test_a_new_one_is_never_taken_for_abandoned(tmp_path: Path) -> None:
    """Others look for leftovers all the time, also between its making and its lock."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            remove_abandoned(tmp_path.glob(".tmp-*"))

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for _ in range(300):
            handle, path = open_scratch(tmp_path)
            time.sleep(0.001)
            assert path.exists()
            os.close(handle)
    finally:
        done.set()
        for sweeper in sweepers:
            sweeper.join()
    remove_abandoned(tmp_path.glob(".tmp-*"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as NFS gives them: none on what is open for reading alone."""
    local = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        local(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_locks_hold_on_nfs(tmp_path: Path, nfs: None) -> None:
    with folder_lock(tmp_path), pytest.raises(BlockingIOError), folder_lock(tmp_path, wait=False):
        pass
    with folder_lock(tmp_path, wait=False):
        pass
    handle, path = open_scratch(tmp_path)
    assert not remove_if_abandoned(path)
    os.close(handle)
    assert remove_if_abandoned(path)


def test_the_lock_of_a_folder_is_none_of_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write_if("one", b"1", None)
    assert store.list() == ["one"]
