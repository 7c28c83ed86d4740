"""One progress bar for long work on the main process: a live bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Item = TypeVar("Item")
QUIET_INTERVAL = 20.0  # seconds between lines when the output is not a terminal


class Progress:
    """`with Progress("epoch", total=100) as bar: bar.advance(1, note="loss 0.7")`. Silent when not `shown`."""

    def __init__(self, title: str, total: int, *, shown: bool = True, start: int = 0) -> None:
        self.title = title
        self.total = total
        self.done = start
        self.shown = shown
        self._console = Console(file=sys.stderr)
        self._bar: RichProgress | None = None
        self._last_line = time.monotonic()
        self._note = ""

    def __enter__(self) -> "Progress":
        if self.shown and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = RichProgress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def advance(self, count: int, note: str | None = None) -> None:
        self.done += count
        if self._bar is not None:
            self._note = note or self._note
            self._bar.update(self._task, completed=self.done, note=self._note)
            return
        self._note = note or self._note
        if self.shown and time.monotonic() - self._last_line > QUIET_INTERVAL:
            self._line(self._note)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance(1)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        print(f"{self.title}: {self.done}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.shown and kind is None:
            self._line("done")
