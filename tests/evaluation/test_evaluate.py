"""The folder of results: what is refused before anything is scored, and what may be done again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import read_spec
from fmad_dist.evaluation.evaluate import EvaluationJob, EvaluationOptions, run_evaluation
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp
from fmad_dist.stream.manifest import load_manifest

Evaluate = Callable[..., object]


@pytest.fixture
def evaluate(make_detector: Callable[..., Detector], tiny_url: str, tmp_path: Path) -> Evaluate:
    make_detector((1.0, 2.0, 3.0)).save(tmp_path / "model")

    def start(out: Path, **options: object) -> object:
        model = str(tmp_path / "model")
        return run_evaluation(EvaluationOptions(model, (tiny_url,), str(out), **options), World())  # type: ignore[arg-type]

    return start


def no_more_scoring(patch: pytest.MonkeyPatch) -> None:
    """From now on neither a detector nor a backbone is built."""

    def fail(*_: object) -> None:
        pytest.fail("something was loaded or scored")

    patch.setattr(Detector, "__init__", fail)
    patch.setattr(EvaluationJob, "score", fail)


@pytest.fixture
def nothing_scored(monkeypatch: pytest.MonkeyPatch, evaluate: Evaluate) -> None:
    no_more_scoring(monkeypatch)


@pytest.mark.usefixtures("nothing_scored")
def test_a_folder_that_cannot_be_written_is_told_before_scoring(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"{out}: cannot be written .*; choose another --out"):
            evaluate(out)


def test_another_evaluation_is_not_replaced_unless_asked(evaluate: Evaluate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(out)
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
        evaluate(out, protocol="ader", overrides=("scorer.steps=3",))


def test_a_finished_evaluation_is_read_again(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a detector, by whatever name and with as many readers; maps that are wanted must have been written."""
    out, maps = tmp_path / "out", str(tmp_path / "maps")
    first = evaluate(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        no_more_scoring(patch)
        assert evaluate(out, name="by another name", workers=2) == first
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert "everything was scored before; nothing is left to do" in capsys.readouterr().out
        (out / "results.md").unlink()
        with pytest.raises(
            UserError, match=r"results\.md: changed after it was written, or is missing; give --overwrite"
        ):
            evaluate(out)
        (out / "results.md").write_bytes(before["results.md"])
        with pytest.raises(pytest.fail.Exception):
            evaluate(out, maps=maps)
    evaluate(out, maps=maps)
    no_more_scoring(monkeypatch)
    assert evaluate(out, maps=maps) == evaluate(out) == first


def test_evaluations_of_the_version_before_are_known(evaluate: Evaluate, tiny_url: str, tmp_path: Path) -> None:
    """Their key and the names of their facts, which a folder must be known by."""
    evaluate(tmp_path / "out")
    stamp = read_stamp(Store(tmp_path / "out"))
    assert stamp is not None
    names = ["Model", "Weights", "Scorer", "Protocol", "Network evaluations per image", "Network", "Objective"]
    assert list(stamp.facts) == [*names, "Backbone", "Trained on", "Tested on", "Licences", "Code"]
    spec, digest = read_spec(tmp_path / "model"), load_manifest(tiny_url).digest
    facts = {"detector": spec.model_dump(mode="json"), "manifests": {"tiny": digest}, "format": "fmad-evaluation/3"}
    assert stamp.key == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


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
