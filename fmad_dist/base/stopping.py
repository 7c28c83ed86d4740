"""SIGUSR1 asks a rank to stop. While it does steps it stops at one that all agree on; else it ends at once, code 75.

A thread of its own waits for the signal, so that it is served while the main one waits for other processes, too. Until
then the signal is blocked: it waits for the thread and ends nothing.
"""

import signal
import threading
from collections.abc import Callable

from fmad_dist.base.companions import stop_now

STOP = {signal.SIGUSR1}

_listener: Callable[[], object] | None = None


def hold_stop_signal() -> None:
    """Let SIGUSR1 wait from now on, also in the processes and threads that this thread starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)


def serve_stop_signal() -> None:
    """Serve SIGUSR1 from now on; to be called before there are other threads."""
    hold_stop_signal()
    threading.Thread(target=_serve, name="stop-signal", daemon=True).start()


def tell_of_stop_signal(listener: Callable[[], object] | None) -> None:
    """Call `listener` for the signal instead of ending at once; None = end at once again."""
    global _listener
    _listener = listener


def _serve() -> None:
    while True:
        signal.sigwait(STOP)
        (_listener or stop_now)()
