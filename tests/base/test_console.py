"""What is said to a person who looks at a terminal, and to one who reads a log."""

import pytest

from fmad_dist.base import console
from fmad_dist.base.console import Progress, counted, duration, warn


def test_counts_and_durations_in_words() -> None:
    assert (counted(1, "class", "classes"), counted(0, "class", "classes")) == ("1 class", "0 classes")
    assert [duration(s) for s in (90, 4500, 95_400, 518_400)] == ["90 s", "75 min", "26.5 h", "6 days"]


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with Progress("epoch", total=4, start=1) as bar:
        bar.advance(1, note="loss 0.7")
        now = 21.0
        bar.advance(1)
        assert list(bar.over("a")) == ["a"]
    warn("look out")
    assert capsys.readouterr().err == "epoch: 3/4 loss 0.7\nepoch: 4/4 done\nwarning: look out\n"


def test_progress_is_silent_on_other_ranks_and_says_nothing_of_work_that_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("epoch", total=1, shown=False) as bar:
        bar.advance(1)
    with pytest.raises(RuntimeError), Progress("epoch", total=1):
        raise RuntimeError
    assert capsys.readouterr().err == ""
