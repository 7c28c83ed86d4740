"""Writes that go on in threads beside other work, bounded."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS, MAX_WAITING = 4, 8


class WriteBehind:
    """Runs writes in a few threads; whoever is too far ahead waits. An error of a write is raised by a later call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="write")
        self._waiting: deque[Future[None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        while len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(write))

    def wait(self) -> None:
        """Until everything that was put is done."""
        while self._waiting:
            self._waiting.popleft().result()
