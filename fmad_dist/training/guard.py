"""Steps whose gradient is not finite: DeepSpeed leaves them out on all ranks, here they are counted and bounded."""

from typing import Any


class NonFiniteGuard:
    """After `limit` skipped steps in a row training goes back to its last checkpoint, at most `max_rollbacks` times."""

    def __init__(self, limit: int, max_rollbacks: int) -> None:
        self.limit = limit
        self.max_rollbacks = max_rollbacks
        self.skipped = 0
        self.rollbacks = 0
        self.in_a_row = 0

    def note(self, optimizer: Any) -> bool:
        """Whether the step that just ended was skipped; the same on all ranks, because the gradient norm is."""
        skipped = bool(optimizer.overflow)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.skipped += skipped
        return skipped

    @property
    def must_go_back(self) -> bool:
        return self.in_a_row >= self.limit

    def went_back(self) -> None:
        self.rollbacks += 1
        self.in_a_row = 0

    @property
    def may_go_back(self) -> bool:
        return self.rollbacks < self.max_rollbacks
