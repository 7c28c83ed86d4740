"""A prediction that was killed goes on, and another one is never continued or mixed with it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.detector.detector import Detections, Detector
from fmad_dist.jobs.partial import Part, PartialResults
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp
from tests.prediction.scored import files_of, predict, rows_of, save


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images every call of a detector scored."""
    counts: list[int] = []
    forward = Detector.forward

    def counting(self: Detector, images: torch.Tensor) -> Detections:
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Detector, "forward", counting)
    return counts


def kill_after(monkeypatch: pytest.MonkeyPatch, num_saved: int) -> None:
    """The next prediction dies instead of saving another shard than its first ones."""
    save = PartialResults.save

    def dying(self: PartialResults, part: Part) -> None:
        if len(part.shards) > num_saved:
            raise Killed
        save(self, part)

    monkeypatch.setattr(PartialResults, "save", dying)


def test_killed_and_resumed_is_undisturbed(
    tiny_detector: Detector, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    for number in range(9, 30):
        save(source / f"{number}.png", number)
    predict(tiny_detector, source, tmp_path / "whole")
    assert sum(scored) == 32  # and one file that is none
    out = tmp_path / "killed"
    for num_saved in (2, 0):
        with monkeypatch.context() as patch:
            kill_after(patch, num_saved)
            with pytest.raises(Killed):
                predict(tiny_detector, source, out, save_s=0.0)
    assert not (out / "scores.parquet").exists()
    scored.clear()
    assert predict(tiny_detector, source, out).num_images == 33
    assert sum(scored) == 32 - 16  # two shards of eight were kept
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_one_is_not_done_again(
    tiny_detector: Detector, source: Path, tmp_path: Path, scored: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = predict(tiny_detector, source, tmp_path / "out")
    before = files_of(tmp_path / "out")
    scored.clear()
    assert predict(tiny_detector, source, tmp_path / "out") == first
    assert scored == []
    assert "nothing is left to do" in capsys.readouterr().out
    (tmp_path / "out" / "partial").mkdir()  # as if a kill had come before the parts were removed
    (tmp_path / "out" / "partial" / "base.part").write_bytes(b"x")
    predict(tiny_detector, source, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_another_prediction_is_refused_unless_it_may_be_removed(
    make_detector: Callable[..., Detector], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            predict(make_detector((1.0, 2.0)), source, out, save_s=0.0)
    with pytest.raises(UserError, match=r"holds a prediction with other settings; .*--overwrite"):
        predict(make_detector((1.0, 3.0)), source, out)
    predict(make_detector((1.0, 2.0)), source, out)
    save(source / "new.png", 99)
    with pytest.raises(UserError, match=r"images 12 \(\w+\) instead of 13 \(\w+\)"):
        predict(make_detector((1.0, 2.0)), source, out)
    assert len(rows_of(out)) == 12
    (source / "0.png").unlink()
    predict(make_detector((1.0, 3.0)), source, out, overwrite=True)
    predict(make_detector((1.0, 3.0)), source, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")  # no picture of the image that is gone


def test_a_changed_table_and_other_results_are_noticed(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    predict(tiny_detector, source, tmp_path / "out")
    (tmp_path / "out" / "scores.csv").write_text("mine")
    with pytest.raises(UserError, match=r"scores.csv: changed after it was written"):
        predict(tiny_detector, source, tmp_path / "out")
    Store(tmp_path / "results").write("stamp.json", b'{"key": "1", "facts": {"Model": "m"}, "files": {}}')
    with pytest.raises(UserError, match="holds something else than a prediction"):
        predict(tiny_detector, source, tmp_path / "results", overwrite=True)


def test_predictions_of_the_version_before_are_known(tiny_detector: Detector, source: Path, tmp_path: Path) -> None:
    """Their key and the names of their facts, which a folder must be known by."""
    predict(tiny_detector, source, tmp_path / "out")
    stamp = read_stamp(Store(tmp_path / "out"))
    assert stamp is not None
    inputs = ["weights", "sensitivity", "threshold", "images", "pictures"]
    assert list(stamp.facts) == ["format", "model", "sources", *inputs, "source_urls"]  # the last since 0.2
    facts = {name: stamp.facts[name] for name in inputs}
    facts |= {"detector": tiny_detector.spec.model_dump(mode="json"), "batch": 8, "format": "fmad-prediction/1"}
    assert stamp.key == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def test_too_many_bad_images_are_an_error_that_keeps_what_was_scored(
    tiny_detector: Detector, source: Path, tmp_path: Path, scored: list[int]
) -> None:
    for name in ("0.png", "8.png"):
        (source / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"3 images could not be read and --max-bad allows 2, one of them: .*8\.png"):
        predict(tiny_detector, source, tmp_path / "out", max_bad=2)
    assert not (tmp_path / "out" / "scores.parquet").exists()
    scored.clear()
    assert predict(tiny_detector, source, tmp_path / "out", max_bad=3).num_unreadable == 3
    assert sum(scored) < 9
