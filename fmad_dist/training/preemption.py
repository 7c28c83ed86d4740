"""SIGTERM and SIGUSR1 ask a job to stop: all ranks agree on where, keep what was done and end with code 75."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from fmad_dist.errors import UserError
from fmad_dist.launch import EXIT_STOPPED
from fmad_dist.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
NAP_S = 0.2


class Preempted(UserError):
    """A job was asked to stop and did; nothing is lost."""

    exit_code = EXIT_STOPPED


class StopRequest:
    """Whether any rank was asked to stop; all ranks learn it at the same step of their work.

    Signals reach ranks at different moments, so each step starts a small reduction over gloo whose result is read one
    step later: nobody waits for it, and no GPU is involved.
    """

    def __init__(self, world: World) -> None:
        import torch.distributed as dist

        self._asked = False
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
        self._before: dict[signal.Signals, Any] = {}

    def agreed(self) -> bool:
        """Every rank calls once per step; the same answer on all of them."""
        if self._group is None:
            return self._asked
        import torch.distributed as dist

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

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        for number, handler in self._before.items():
            signal.signal(number, handler)
