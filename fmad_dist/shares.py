"""Work dealt to processes in fixed parts, so that what comes out does not depend on how many processes there are."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

MAX_SHARDS = 1024  # enough for every rank to have some, and few files
LONGEST_WAIT = timedelta(days=7)  # of a quick rank for a slow one; the launcher ends the ranks that wait for a dead one


def in_shards(items: Sequence[T], batch: int) -> list[list[Sequence[T]]]:
    """The items in order, in batches of `batch`, in at most MAX_SHARDS shards of equally many batches; the last of each
    may be smaller. A function of the number of items alone."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    size = max(1, -(-len(batches) // MAX_SHARDS))
    return [batches[start : start + size] for start in range(0, len(batches), size)]
