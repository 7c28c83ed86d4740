"""A rank that hangs must not leave the others waiting for ever: every rank watches its own progress."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from fmad_dist.launch import EXIT_HUNG, leave_message
from fmad_dist.world import World

GRACE_S = 5.0  # after a dump, so that the other ranks dump too before the launcher ends them


class Watchdog:
    """Without a `beat` for `limit_s` seconds: the stacks of all threads go to stderr and the process ends with 76.

    A rank that waits for a dead or stopped one is not told, so it is its own watchdog that ends it; the launcher then
    ends the rest. A stopped process cannot dump its stack.
    """

    def __init__(self, world: World, limit_s: float) -> None:
        self.world = world
        self.limit_s = limit_s
        self._beat = time.monotonic()
        self._step = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """`step` steps are done."""
        self._step = step
        self._beat = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self._beat > self.limit_s:
                self._abort()

    def _abort(self) -> None:
        text = (
            f"rank {self.world.rank}: no training step for {self.limit_s:.0f} s after step {self._step}; a rank is "
            "dead, stopped or waits for storage (its stack is above, or missing if it is stopped), or a step takes "
            "longer than train.hang_s."
        )
        sys.stderr.write(f"\n{text}\n")
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        leave_message(text, EXIT_HUNG)
        time.sleep(GRACE_S)
        os._exit(EXIT_HUNG)

    def __enter__(self) -> "Watchdog":
        self.beat(self._step)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
