"""The folder of results: what is refused before anything is scored, and what may be done again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.evaluation import run
from fmad_dist.evaluation.run import EvaluationOptions, run_evaluation
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp
from fmad_dist.world import World

Evaluate = Callable[..., object]


@pytest.fixture
def evaluate(make_detector: Callable[..., Detector], tiny_url: str, tmp_path: Path) -> Evaluate:
    make_detector((1.0, 2.0, 3.0)).save(tmp_path / "model")

    def start(out: Path, **options: object) -> object:
        model = str(tmp_path / "model")
        return run_evaluation(EvaluationOptions(model, model, [tiny_url], out, **options), World())  # type: ignore[arg-type]

    return start


@pytest.fixture
def nothing_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*_: object) -> None:
        pytest.fail("something was scored")

    monkeypatch.setattr(run, "evaluate_share", score)


@pytest.mark.usefixtures("nothing_scored")
def test_a_folder_that_cannot_be_written_is_told_before_scoring(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"{out}: cannot be written .*; choose another --out"):
            evaluate(out)


def test_another_evaluation_is_not_replaced_unless_asked(evaluate: Evaluate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(out)
    evaluate(out)  # the same once more
    with pytest.raises(
        UserError,
        match=r"out: holds an evaluation with Protocol fmad-2026 with .* instead of ader v1 \(biased\); choose another",
    ):
        evaluate(out, protocol="ader")
    evaluate(out, protocol="ader", overwrite=True)
    stamp = read_stamp(Store(out))
    assert stamp is not None
    assert stamp.facts["Protocol"] == "ader v1 (biased)"
    with pytest.raises(UserError, match=r"holds an evaluation with Scorer .*steps=2.* instead of .*steps=3"):
        evaluate(out, protocol="ader", overrides=["scorer.steps=3"])


def test_classes_that_were_never_trained_on_are_told(
    evaluate: Evaluate, make_detector: Callable[..., Detector], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tmp_path / "new")
    make_detector((1.0, 2.0), class_names=("tiny/bolt", "tiny/nut")).save(tmp_path / "model")
    evaluate(tmp_path / "known")
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert first.endswith("never trained on 3 of 3 test classes: tiny/bolt, tiny/nut, tiny/washer")
    assert second.endswith("never trained on 1 of 3 test classes: tiny/washer")


@pytest.mark.usefixtures("nothing_scored")
def test_a_folder_of_something_else_is_never_replaced(evaluate: Evaluate, tmp_path: Path) -> None:
    write_stamp(Store(tmp_path / "out"), "key", {"format": "fmad-prediction/1"}, ())
    with pytest.raises(UserError, match="out: holds something else than an evaluation; choose another --out"):
        evaluate(tmp_path / "out", overwrite=True)
