"""A lease: of several jobs that want one folder, on any storage and any machine, one has it until it ends.

    lease.json    whose it is, and a number that its owner counts up every RENEW_S seconds

Every write is conditional on what was read before, so of two that want it at once one gets it. The lease of a process
that has died is taken over: at once where that can be seen, which is on its own machine, else when it was not renewed
for EXPIRY_S seconds of the watcher's own time, so that clocks need not agree.
"""

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fmad_dist.base.console import say, warn
from fmad_dist.base.errors import UserError
from fmad_dist.storage.store import Store

LEASE_NAME = "lease.json"
RENEW_S = 15.0
EXPIRY_S = 60.0
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The process behind a lease or a lock."""

    user: str
    host: str
    machine: str  # boot and namespace of process numbers; equal numbers mean one process only where this is the same
    pid: int
    ticks: str  # when the process started, since the boot
    since: str  # UTC, for people

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(getpass.getuser(), socket.gethostname(), _machine(), os.getpid(), _ticks(os.getpid()) or "", since)

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, so that it is known if it lives."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Whether it lives, of one that `is_here`."""
        return _ticks(self.pid) == self.ticks


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # no Linux


def _ticks(pid: int) -> str | None:
    """When a process started, None if there is none of this number, or only what its parent has not waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Lease:
    """The lease of the folder `store`; hold it by `with`.

    A thread renews it. When another process has taken it over meanwhile, because this one was stopped or cut off from
    the storage for too long, `on_lost` is called in that thread with a sentence.
    """

    def __init__(self, store: Store, on_lost: Callable[[str], object]) -> None:
        self.store = Store(store.url, patience_s=RENEW_S)
        self.on_lost = on_lost
        self._owner = Owner.here()
        self._token = uuid.uuid4().hex
        self._count = 0
        self._held = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease; wait up to EXPIRY_S seconds for one whose owner may be dead.

        Raises:
            UserError: another process has it; or the storage refuses.
        """
        seen = self._read()
        if seen is not None:
            seen = self._outlived(seen)
        body = self._body()
        if not self.store.write_if(LEASE_NAME, body, seen):
            raise self._refusal(self._read())
        self._held = body
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._read() == self._held:
                self.store.remove(LEASE_NAME)
        except UserError as error:  # the work is done; the next job waits until it expires
            warn(f"the lease could not be given back: {error}")

    def check_free(self) -> None:
        """Refuse what a living process of this machine holds (UserError); nothing is written and nobody waited for."""
        seen = self._read()
        owner = _owner_in(seen)
        if owner is not None and owner.is_here and owner.lives:
            raise self._refusal(seen)

    def _outlived(self, seen: bytes) -> bytes | None:
        """Return the lease that may be taken over, None if it was given back."""
        owner = _owner_in(seen)
        if owner is not None and owner.is_here:
            if owner.lives:
                raise self._refusal(seen)
            return seen
        say(f"{self.store.url}: held by {owner or 'somebody'}; looking for up to {EXPIRY_S:.0f} s whether that lives")
        end = time.monotonic() + EXPIRY_S
        while time.monotonic() < end:
            time.sleep(POLL_S)
            found = self._read()
            if found is None:
                return None
            if found != seen:
                raise self._refusal(found)
        return seen

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            body = self._body()
            try:
                if self.store.write_if(LEASE_NAME, body, self._held):
                    self._held = body
                    continue
                found = self._read()
            except UserError:  # the storage is away, for the others too; who sees it first again has it
                continue
            if found is None or found != self._held:
                self.on_lost(str(self._refusal(found)))
                return

    def _body(self) -> bytes:
        self._count += 1
        return json.dumps(asdict(self._owner) | {"token": self._token, "count": self._count}).encode()

    def _read(self) -> bytes | None:
        return self.store.read(LEASE_NAME) if self.store.exists(LEASE_NAME) else None

    def _refusal(self, found: bytes | None) -> UserError:
        owner = _owner_in(found) or "another process"
        return UserError(
            f"{self.store.url}: in use by another job ({owner}); wait for its end, stop it, or choose another `name`."
        )


def _owner_in(content: bytes | None) -> Owner | None:
    """Return whose lease it is; None if there is none, or a damaged one."""
    with suppress(ValueError, TypeError, KeyError):
        body = json.loads(content or b"")
        return Owner(**{name: body[name] for name in Owner.__slots__})
    return None
