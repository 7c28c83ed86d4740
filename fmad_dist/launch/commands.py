"""Run `fmad` commands one after the other, each in a process of its own and shown as a user would type it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

BOUND = "FMAD_ENDS_WITH_PARENT"  # set for a command that must not outlive the one that started it
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C reaches the whole foreground group by itself


class CommandRunner:
    """Starts commands. A signal to stop is passed on to the running one and remembered."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: subprocess.Popen[bytes] | None = None

    def run(self, words: Sequence[str]) -> int:
        """Run `fmad <words>` to its end; returns its exit code, 1 if a signal ended it."""
        print(f"\n$ fmad {shlex.join(words)}", flush=True)
        environment = {**os.environ, BOUND: "1"}
        command = [sys.executable, "-m", "fmad_dist.cli", *words]
        with self._signals(), subprocess.Popen(command, env=environment) as self._running:
            if self.stopped:  # before there was anything to pass it on to
                self._running.terminate()
            code = self._running.wait()
        self._running = None
        return code if code >= 0 else 1

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (*PASSED_ON, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._running is not None and number in PASSED_ON:
            self._running.send_signal(number)
