"""Rendering in worker processes: results in order, a bounded number in flight, and no orphans when we are killed."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_tools.readers.source import SourceImage
from data_tools.rendition import Rendered, StoredForm, render
from fmad_dist.errors import UserError

_IN_FLIGHT_PER_WORKER = 4


def render_in_order(images: Iterable[SourceImage], form: StoredForm, num_workers: int) -> Iterator[Rendered]:
    """Rendered images in the order given; one worker means this process.

    Raises:
        UserError: an image is bad, or a worker died.
    """
    if num_workers <= 1:
        for image in images:
            yield render(image, form)
        return
    # Not fork: the parent may hold threads of a storage client, whose locks a forked child would inherit.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        waiting: deque[Future[Rendered]] = deque()
        try:
            for image in images:
                if len(waiting) == num_workers * _IN_FLIGHT_PER_WORKER:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(render, image, form))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"--workers {num_workers}: a worker process was killed, probably for lack of memory; use fewer."
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """Workers of an executor wait for ever when their parent is killed, so each watches it from a thread."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
