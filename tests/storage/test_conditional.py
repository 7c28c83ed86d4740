"""Of several writers that saw the same content, exactly one wins."""

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from fmad_dist.storage import TEMPORARY_PREFIX, Store


@pytest.mark.parametrize("url", ["local", "memory://conditional"])
def test_a_write_needs_what_it_saw(url: str, tmp_path: Path) -> None:
    store = Store(tmp_path if url == "local" else f"{url}/{os.getpid()}")
    assert not store.write_if("x", b"2", seen=b"1")  # there is nothing yet
    assert store.write_if("x", b"1", seen=None)
    assert not store.write_if("x", b"2", seen=None)
    assert not store.write_if("x", b"2", seen=b"other")
    assert store.read("x") == b"1"
    assert store.write_if("x", b"2", seen=b"1")
    assert store.read("x") == b"2"
    assert store.write_if("x", b"2", seen=b"long ago")  # what was wanted is there
    assert store.list() == ["x"]


def compete(folder: str, number: int, start: Barrier) -> None:
    store = Store(folder)
    start.wait()
    for name in range(50):
        if store.write_if(f"{name}", f"{number}".encode(), seen=None):
            store.write(f"won-{name}-{number}", b"")


def test_of_four_processes_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    start = context.Barrier(4)
    processes = [context.Process(target=compete, args=(str(tmp_path), n, start)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for name in range(50):
        winner = (tmp_path / f"{name}").read_text()
        assert [path.name for path in tmp_path.glob(f"won-{name}-*")] == [f"won-{name}-{winner}"]
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
