import json
import time
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.tracking.record import RunRecord, read_lines


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / "metrics.jsonl")]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(tmp_path / "runs" / "mine", is_main=True)
    for step in (10, 20, 30):
        record.metrics(step, {"loss": step / 100})
    return record


def test_metrics_are_on_disk_at_once(record: RunRecord) -> None:
    lines = (record.folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(line["step"], line["loss"]) for line in found] == [(s, s / 100) for s in (10, 20, 30)]
    assert all(abs(line["time"] / 1000 - time.time()) < 60 for line in found)


def test_a_record_is_continued(record: RunRecord) -> None:
    RunRecord(record.folder, is_main=True).metrics(40, {"loss": 0.0})
    assert steps_of(record.folder) == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("step", "kept"), [(20, [10, 20]), (25, [10, 20]), (30, [10, 20, 30]), (0, []), (99, [10, 20, 30])]
)
def test_a_rewind_forgets_later_steps(record: RunRecord, step: int, kept: list[int]) -> None:
    record.rewind(step)
    assert steps_of(record.folder) == kept
    record.metrics(step + 1, {"loss": 1.0})
    assert steps_of(record.folder) == [*kept, step + 1]


def test_a_line_that_a_crash_cut_is_left_out(record: RunRecord) -> None:
    path = record.folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "lo')
    assert steps_of(record.folder) == [10, 20, 30]
    resumed = RunRecord(record.folder, is_main=True)
    resumed.rewind(30)
    resumed.metrics(40, {"loss": 2.0})
    assert read_lines(path)[-1]["loss"] == 2.0
    assert steps_of(record.folder) == [10, 20, 30, 40]


def test_nothing_is_lost_when_a_rewind_is_cut_short(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record.rewind(10)
    assert steps_of(record.folder) == [10, 20, 30]


def test_small_files_are_replaced_whole(record: RunRecord) -> None:
    record.write("config.yaml", "a: 1\n")
    record.write("config.yaml", "b\n")
    assert (record.folder / "config.yaml").read_text() == "b\n"
    assert sorted(path.name for path in record.folder.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run", is_main=False)
    record.metrics(1, {"loss": 0.0})
    record.write("config.yaml", "x")
    record.rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another `output`") as caught:
        RunRecord(tmp_path / "file" / "run", is_main=True)
    assert str(tmp_path / "file" / "run") in str(caught.value)
