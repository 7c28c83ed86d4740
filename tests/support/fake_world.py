"""A World whose collectives are answered by a test, to play one rank of several in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmad_dist.base.world import World


def alone(item: Any) -> list[Any]:
    """What `World.gather` gives to the only rank."""
    return [item]


@dataclass(frozen=True)
class FakeWorld(World):
    """`gathered` answers `gather`, `sent` `broadcast` and `filled` `combined`; a barrier is passed at once."""

    gathered: Callable[[Any], list[Any]] = alone
    sent: Callable[[Any, int], Any] = lambda item, source: item
    filled: Callable[[np.ndarray], np.ndarray] = lambda values: values

    def gather(self, item: Any) -> list[Any]:
        return self.gathered(item)

    def broadcast(self, item: Any, source: int = 0) -> Any:
        return self.sent(item, source)

    def combined(self, values: np.ndarray) -> np.ndarray:
        return self.filled(values)

    def barrier(self) -> None:
        """Nobody else is there."""
