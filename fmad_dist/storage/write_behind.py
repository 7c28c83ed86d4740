"""Writes that go on in threads beside other work, bounded."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class WriteBehind:
    """Runs writes in a few threads; a caller who is `max_waiting` ahead waits. A later call raises a write's error."""

    def __init__(self, threads: int = 4, max_waiting: int = 8) -> None:
        self.max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._waiting: deque[Future[None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        while len(self._waiting) >= self.max_waiting:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(write))

    def wait(self) -> None:
        """Wait until everything that was put is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Finish what was put; errors are not raised."""
        self._pool.shutdown(wait=True)
