"""One job has a folder; whoever wants it too is told who, and a dead owner is no hindrance."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store, lease
from fmad_dist.storage.lease import LEASE_NAME, Lease, Owner


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_S", 0.8)
    monkeypatch.setattr(lease, "POLL_S", 0.05)


def of(store: Store) -> Lease:
    return Lease(store, lambda text: None)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine."""
    monkeypatch.setattr(lease, "_machine", lambda: "another boot")


def hold(url: str, held: Event) -> None:
    with of(Store(url)):
        held.set()
        time.sleep(600)


def test_the_refused_one_is_told_whose_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with of(store):
        who = rf"process {os.getpid()}, since .* UTC\); wait for its end, stop it, or choose another `name`"
        with pytest.raises(UserError, match=who), of(store):
            pass
        with pytest.raises(UserError, match="in use by another job"):
            of(store).check_free()
    assert store.list() == []
    of(store).check_free()
    with of(store):
        pass


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), held))
    process.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"process {process.pid}"):
        of(Store(tmp_path)).check_free()
    process.kill()
    process.join()
    started = time.monotonic()
    with of(Store(tmp_path)):
        assert time.monotonic() - started < 5.0


def test_a_number_that_another_process_has_got_is_no_owner(tmp_path: Path) -> None:
    mine = replace(Owner.here(), ticks="1")
    Store(tmp_path).write(LEASE_NAME, json.dumps(asdict(mine)).encode())
    with of(Store(tmp_path)):
        pass


def late_writing(store: Store) -> Callable[[str, bytes, bytes | None], bool]:
    def write_if(name: str, data: bytes, seen: bytes | None) -> bool:
        time.sleep(1.5)
        return store.write_if(name, data, seen)

    return write_if


@pytest.mark.parametrize("url", ["local", "memory://lease"])
def test_another_machine_is_watched(
    tmp_path: Path, url: str, hasty: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renewed lease is refused, one that is not renewed is taken over; its old owner learns it."""
    store = Store(tmp_path if url == "local" else f"{url}/{os.getpid()}")
    lost: list[str] = []
    with Lease(store, lost.append) as first:
        elsewhere(monkeypatch)
        with pytest.raises(UserError, match="in use by another job"), of(store):
            pass
        assert "looking for up to" in capsys.readouterr().err
        first.store.write_if = late_writing(store)  # cut off for a while
        time.sleep(0.2)
        with of(store):
            deadline = time.monotonic() + 10.0
            while not lost:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert "in use by another job" in lost[0]
    assert store.list() == []


def compete(url: str, number: int, out: str) -> None:
    try:
        with of(Store(url)):
            time.sleep(1.5)
            Path(out, f"won-{number}").write_text("")
    except UserError as error:
        Path(out, f"lost-{number}").write_text(str(error))


def test_of_four_that_start_at_once_one_has_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compete, args=(str(tmp_path / "run"), n, str(tmp_path))) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob("won-*"))) == 1
    told = [path.read_text() for path in tmp_path.glob("lost-*")]
    assert len(told) == 3
    assert all("in use by another job (" in text for text in told)
