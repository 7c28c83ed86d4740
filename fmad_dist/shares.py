"""Work dealt to processes in fixed parts, so that what comes out does not depend on how many processes there are."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def in_shards(items: Sequence[T], batch: int, most: int) -> list[list[Sequence[T]]]:
    """The items in order, in batches of `batch`, in at most `most` shards of equally many batches; the last of each may
    be smaller. A function of the number of items alone."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    size = max(1, -(-len(batches) // most))
    return [batches[start : start + size] for start in range(0, len(batches), size)]
