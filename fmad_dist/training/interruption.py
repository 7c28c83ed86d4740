"""What ends a training or an evaluator before its work is done: a request to stop, and a rank that hangs.

SIGTERM and SIGUSR1 ask a job to stop: all ranks agree on where, keep what was done and end with code 75. Every rank
watches its own progress and ends with code 76 when it hangs, so that the others do not wait for ever.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from fmad_dist.base.errors import UserError
from fmad_dist.base.process import EXIT_HUNG, EXIT_STOPPED, leave_message
from fmad_dist.base.stopping import tell_of_stop_signal
from fmad_dist.base.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
NAP_S = 0.2
GRACE_S = 5.0  # after a dump, so that the other ranks dump too before the launcher ends them


class Preempted(UserError):
    """A job was asked to stop and did; nothing is lost."""

    exit_code = EXIT_STOPPED


class StopRequest:
    """Whether any rank was asked to stop; all ranks learn it at the same step of their work.

    Signals reach ranks at different moments, so each step starts a small reduction over gloo whose result is read one
    step later: nobody waits for it, and no GPU is involved.
    """

    def __init__(self, world: World) -> None:
        self._asked = False
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether this rank was asked."""
        return self._asked

    def agreed(self) -> bool:
        """Whether to stop, the same answer on all ranks; every rank calls once per step."""
        if self._group is None:
            return self._asked
        stop = self._finish()
        self._flag.fill_(int(self._asked))
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop

    def wait(self, seconds: float) -> None:
        """Sleep, but not much longer than until this rank is asked."""
        end = time.monotonic() + seconds
        while not self._asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, NAP_S))  # an event could not be set by a handler that interrupts its own wait

    def _finish(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag.item())

    def _ask(self, number: int = signal.SIGUSR1, frame: FrameType | None = None) -> None:
        self._asked = True

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        tell_of_stop_signal(self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        tell_of_stop_signal(None)
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Watchdog:
    """Ends the process with code 76 after `limit_s` seconds without a `beat`; stacks of all threads go to stderr.

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
        """Note that `step` steps are done."""
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
