"""What is said to a person: progress, messages and warnings on stderr, tables, counts and durations in sentences."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from fmad_dist.base.secrets import without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Item = TypeVar("Item")
QUIET_INTERVAL = 20.0  # seconds between lines of progress where there is no terminal


def counted(number: int, one: str, many: str) -> str:
    """`1 class`, `2 classes`."""
    return f"{number} {one if number == 1 else many}"


def duration(seconds: float) -> str:
    """`90 s`, `75 min`, `26.5 h`, `6 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def say(message: str) -> None:
    """Write a line to stderr at once, without secrets."""
    print(without_secrets(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Write a warning to stderr at once."""
    say(f"warning: {message}")


def print_table(table: object) -> None:
    """Print a rich table, or text, to stdout; where no terminal has an edge, 200 columns wide."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    Console(width=None if is_terminal else 200, soft_wrap=not is_terminal).print(table)


class Progress:
    """Progress of long work on the main process: a live bar in a terminal, a line now and then elsewhere.

    `with Progress("epoch", total=100) as bar: bar.advance(1, note="loss 0.7")`. Silent when not `shown`.
    """

    def __init__(self, title: str, total: int, *, shown: bool = True, start: int = 0) -> None:
        self.title = title
        self.total = total
        self.done = start
        self.shown = shown
        self._bar: RichProgress | None = None
        self._last_line = time.monotonic()
        self._note = ""

    def __enter__(self) -> "Progress":
        if self.shown:
            from rich import console, progress  # a tenth of a second, which processes that show nothing save

            terminal = console.Console(file=sys.stderr)
            if terminal.is_terminal:
                times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
                columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), *times)
                self._bar = progress.Progress(*columns, "{task.fields[note]}", console=terminal)
                self._bar.start()
                self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def advance(self, count: int, note: str | None = None) -> None:
        """Count so many more as done; the note stays until there is another."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif self.shown and time.monotonic() - self._last_line > QUIET_INTERVAL:
            self._line(self._note)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance(1)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        say(f"{self.title}: {self.done}/{self.total} {note}".rstrip())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.shown and kind is None:
            self._line("done")
