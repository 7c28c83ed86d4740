"""The skeleton: every shard once, whoever scores it and however often everything dies."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.jobs.job import NOTHING_LEFT, complete
from fmad_dist.jobs.partial import PartialResults
from fmad_dist.jobs.scoring import deal, score_shards
from fmad_dist.storage import Store
from tests.jobs.toy_job import Killed, ToyJob, ToyOptions

STARTS = st.lists(st.lists(st.integers(0, 12) | st.none(), min_size=1, max_size=4), max_size=4)


def start(out: str, count: int, batch: int, dies_at: list[int | None]) -> None:
    """As many ranks as `dies_at` has entries, one after the other; rank i dies before its batch dies_at[i]."""
    store = Store(out).child("partial")
    job = ToyJob(out, count, batch)
    base = PartialResults(store, job.identity.partial_key, 0, 0.0).collect(job.merge)
    for rank, last in enumerate(dies_at):
        one = ToyJob(out, count, batch, last)
        numbers = deal(len(one.shards), base.shards, rank, len(dies_at))
        partial = PartialResults(store, one.identity.partial_key, rank, 0.0)
        try:
            score_shards(one, numbers, World(rank, len(dies_at)), partial)
        except Killed:
            assert one.num_batches == last


@settings(max_examples=25)
@given(count=st.integers(1, 60), batch=st.integers(1, 5), starts=STARTS)
def test_every_image_counts_once_after_any_kills_on_any_ranks(
    count: int, batch: int, starts: list[list[int | None]]
) -> None:
    with tempfile.TemporaryDirectory() as out:
        for dies_at in starts:
            start(out, count, batch, dies_at)
        job = ToyJob(out, count, batch)
        assert complete(job, ToyOptions(out), World()) == list(range(count))
        assert sorted(path.name for path in Path(out).iterdir()) == ["found.json", "stamp.json"]


def test_a_kill_loses_no_more_than_since_the_last_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        complete(ToyJob(tmp_path, dies_at=7), ToyOptions(str(tmp_path), save_s=0.0), World())
    job = ToyJob(tmp_path, dies_at=2)
    with pytest.raises(Killed):
        complete(job, ToyOptions(str(tmp_path), save_s=3600.0), World())
    assert "14 images were scored before; going on with the others" in capsys.readouterr().out
    last = ToyJob(tmp_path)
    assert complete(last, ToyOptions(str(tmp_path)), World()) == list(range(20))
    assert last.num_batches == 3, "seven were kept by the first start, and none of the two of the second"


def test_a_finished_job_loads_and_scores_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ToyOptions(str(tmp_path))
    assert complete(ToyJob(tmp_path), options, World()) == list(range(20))
    again = ToyJob(tmp_path)
    assert complete(again, options, World()) == list(range(20))
    assert (again.loaded, again.num_batches) == (False, 0)
    assert NOTHING_LEFT in capsys.readouterr().out


def test_a_kill_between_the_stamp_and_the_removal_of_the_parts_is_a_finished_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fmad_dist.jobs.folder.JobFolder._clear", lambda self: None)
        complete(ToyJob(tmp_path), ToyOptions(str(tmp_path)), World())
    assert list(tmp_path.glob("partial/*.part"))
    again = ToyJob(tmp_path)
    complete(again, ToyOptions(str(tmp_path)), World())
    assert not again.loaded
    assert not (tmp_path / "partial").exists()


def test_what_was_scored_is_kept_when_a_job_must_end(tmp_path: Path) -> None:
    options = ToyOptions(str(tmp_path), save_s=3600.0)
    with pytest.raises(UserError, match="too many"):
        complete(ToyJob(tmp_path, refuses="too many"), options, World())
    again = ToyJob(tmp_path)
    assert complete(again, options, World()) == list(range(20))
    assert again.num_batches == 9
