"""A detector from a checkpoint: what it may replace."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.detector.detector import Detector
from fmad_dist.training import export as module
from fmad_dist.training.export import RunParts, export


class Started(Exception):
    """The work began."""


@pytest.fixture
def held(make_detector: Callable[..., Detector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the detector of step 10, beside a run with checkpoints of any step."""

    def begin(*_: object) -> None:
        raise Started

    monkeypatch.setattr(
        module,
        "find_checkpoint",
        lambda run, step: SimpleNamespace(store=SimpleNamespace(url=run), state=SimpleNamespace(step=step, config={})),
    )
    monkeypatch.setattr(RunParts, "prepare", begin)
    make_detector((1.0,)).save(tmp_path / "detector")
    return tmp_path / "detector"


def test_the_detector_of_another_step_is_not_replaced_unless_asked(held: Path) -> None:
    with pytest.raises(UserError, match=r"detector: holds a detector with step 10 instead of 4; .* give --overwrite"):
        export("run", 4, held)
    for step, overwrite in ((10, False), (4, True)):
        with pytest.raises(Started):
            export("run", step, held, overwrite)
    (held / "detector.json").write_text("{")  # damaged: made again
    with pytest.raises(Started):
        export("run", 4, held)


def test_a_file_in_place_of_the_folder_is_told_first(held: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be written .*; choose another --out"):
        export("run", 10, held / "weights.safetensors")
