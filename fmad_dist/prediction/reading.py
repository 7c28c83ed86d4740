"""Images read and decoded by threads ahead of the network. Decoders let other threads run, so threads are enough."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.images import open_image, square_rgb
from fmad_dist.prediction.sources import Item
from fmad_dist.storage import Store

S = TypeVar("S")
T = TypeVar("T")

PATIENCE_S = 300.0  # a prediction waits this long for its storage


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image uint8 [S, S, 3] as the detector takes it, or the sentence that says why there is none."""

    item: Item
    pixels: np.ndarray | None
    error: str = ""


def load(item: Item, size: int) -> Loaded:
    """Raises:
    UserError: the storage is away or refuses; that an image is damaged or gone is its own `error` and stops nothing.
    """
    try:
        data = read_bytes(item)
    except UserError as error:
        if not _concerns_one_file(error, _store(item.folder)):
            raise
        return Loaded(item, None, str(error))
    where = item.url if item.url.endswith(item.name.rpartition("/")[2]) else f"{item.url} ({item.name})"
    try:
        return Loaded(item, np.asarray(square_rgb(open_image(data, where), size, where)))
    except UserError as error:
        return Loaded(item, None, str(error))


def read_bytes(item: Item) -> bytes:
    """Still encoded; fewer than it should have if its file was cut.

    Raises:
        UserError: the file is gone, or the storage is away or refuses.
    """
    return _store(item.folder).read_range(item.file, item.start, item.start + item.num_bytes)


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    return Store(folder, PATIENCE_S)


def _concerns_one_file(error: UserError, store: Store) -> bool:
    """An object store denies access to everything when credentials expire, which says nothing about an image."""
    own = (FileNotFoundError, PermissionError) if store.is_local else (FileNotFoundError,)
    return isinstance(error.__cause__, own)


def read_ahead(items: Iterable[S], read: Callable[[S], T], threads: int, ahead: int) -> Iterator[T]:
    """`read(item)` of every item, in order; so many are read before they are asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
