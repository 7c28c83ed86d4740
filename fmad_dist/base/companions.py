"""Ranks that end together: whoever ends early says so in the job's store, where the others see it within seconds.

Otherwise they would wait: for a rank that never joins, or under NCCL in a collective, up to its timeout. Launchers end
the other processes of their own node alone.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.process import EXIT_BAD_INPUT, EXIT_STOPPED, leave_message, own_exit_code, prefix
from fmad_dist.base.world import World

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_S = 1.0
GRACE_S = 10.0  # for the end that a rank comes to by itself, as where all meet the same error
MEETING_S = 3600.0  # until the first node is there
KEY = "ended"

_notes: "Notes | None" = None  # of this process


class Notes:
    """What the ranks of this start, and of those before it, have left in the store of the job."""

    def __init__(self, store: "Store", start: int) -> None:
        self._store = store
        self._start = start

    @classmethod
    def of_job(cls) -> "Notes":
        """Those of this process's job, through a connection of its own: in that of `World.join` it may be waiting."""
        import torch.distributed as dist

        store = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING_S)))[0]
        return cls(store, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))

    def leave(self, error: UserError) -> None:
        """The first one stays."""
        self._store.compare_set(self._key(self._start), "", json.dumps([str(error), error.exit_code]))

    def found(self) -> UserError | None:
        """Why a rank of this start has ended."""
        return self._of(self._start)

    def refuse_again(self) -> None:
        """Raise what was bad input to the start before this one: another start would meet the same."""
        earlier = self._of(self._start - 1) if self._start else None
        if earlier is not None and earlier.exit_code == EXIT_BAD_INPUT:
            raise earlier

    def _of(self, start: int) -> UserError | None:
        if not self._store.check([self._key(start)]):
            return None
        text, code = json.loads(self._store.get(self._key(start)))
        error = UserError(text)
        error.exit_code = code
        return error

    def _key(self, start: int) -> str:
        return f"fmad-{KEY}-{start}"


@contextmanager
def ending_together(world: World) -> Iterator[None]:
    """Around the work of a rank, from before it joins the others.

    Raises:
        UserError: the rank's own, or that of another rank whose end made this one fail.
    """
    if world.size == 1:
        yield
        return
    global _notes
    notes, done = Notes.of_job(), threading.Event()
    _notes = notes
    threading.Thread(target=_watch, args=(notes, done), name="companions", daemon=True).start()
    try:
        notes.refuse_again()
        yield
    except UserError as error:
        notes.leave(error)
        raise
    except Exception as error:
        known = notes.found()
        if known is not None and known.exit_code != 1:
            raise known from None  # its end is why this rank failed
        died = UserError(f"rank {world.rank} died: {first_line(error)}")
        died.exit_code = 1
        notes.leave(died)
        raise
    finally:
        done.set()


def _watch(notes: Notes, done: threading.Event) -> None:
    """End this process soon after another rank has left a note."""
    found: UserError | None = None
    while not done.wait(POLL_S if found is None else GRACE_S):
        if found is not None:
            end_now(found)
        try:
            found = notes.found()
        except (RuntimeError, OSError):  # the launcher that holds the store has ended
            return


def stop_now() -> None:
    """End this process and its companions, because it was asked to stop where there is nothing to save."""
    error = UserError("asked to stop while no steps were done; start the same command again to go on.")
    error.exit_code = EXIT_STOPPED
    end_all(error)


def end_all(error: UserError) -> None:
    """End this process at once, from any thread, and its companions with it."""
    if _notes is not None:
        _notes.leave(error)
    end_now(error)


def end_now(error: UserError) -> None:
    """End this process from any thread, whatever the others wait for; the sentence goes to the parent or the log."""
    if not leave_message(str(error), error.exit_code):
        sys.stderr.write(f"{prefix(error)}: {error}\n")
    sys.stderr.flush()
    os._exit(own_exit_code(error.exit_code))
