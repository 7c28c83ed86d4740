"""Several ranks in threads of one process, with collectives that really meet."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fmad_dist.base.world import World

Result = TypeVar("Result")


@dataclass(eq=False)
class Meeting:
    """Where the ranks put their items and wait for each other; one that does not come is an error after a minute."""

    barrier: threading.Barrier
    items: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadWorld(World):
    meeting: Meeting = field(default_factory=lambda: Meeting(threading.Barrier(1)))

    def gather(self, item: Any) -> list[Any]:
        self.meeting.items[self.rank] = item
        self.meeting.barrier.wait(60.0)
        found = [self.meeting.items[rank] for rank in range(self.size)]
        self.meeting.barrier.wait(60.0)
        return found

    def broadcast(self, item: Any, source: int = 0) -> Any:
        return self.gather(item)[source]

    def barrier(self) -> None:
        self.meeting.barrier.wait(60.0)


def on_ranks(size: int, action: Callable[[World], Result]) -> list[Result | Exception]:
    """What the action returns or raises on each rank; every rank is a node of its own."""
    meeting = Meeting(threading.Barrier(size))

    def run(rank: int) -> Result | Exception:
        try:
            return action(ThreadWorld(rank, size, 0, rank, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
