import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fmad_dist.base.errors import UserError
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import SPEC_NAME, WEIGHTS_NAME, locate_detector
from fmad_dist.scoring.calibration import Calibration
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.scoring.reconstruction import ReconstructionConfig
from fmad_dist.storage import Store
from tests.detector.detections import INFINITE, assert_equal, images
from tests.support.small_parts import MakeDetector

ANOTHER = Calibration((9.0, 9.0), (1.0, 1.0), (1, 1), 9.0, 1.0, 0.1)


@pytest.fixture
def saved(tiny_detector: Detector, tmp_path: Path) -> Path:
    tiny_detector.save(tmp_path / "detector")
    return tmp_path / "detector"


def refusal(source: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        Detector.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, change: Callable[[dict[str, Any]], object], sign: bool = True) -> None:
    """As somebody would who may write both files, or without knowing of the digest."""
    spec = json.loads((folder / SPEC_NAME).read_text())
    change(spec)
    if sign:
        del spec["spec_sha256"]
        spec["spec_sha256"] = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    (folder / SPEC_NAME).write_text(json.dumps(spec))


class Payload:
    """What unpickling would make a file of."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("scorer", [InversionConfig(steps=2), ReconstructionConfig(noises=2, steps=2)])
def test_a_loaded_detector_is_the_saved_one(make_detector: MakeDetector, tmp_path: Path, scorer: ScorerConfig) -> None:
    detector = make_detector((0.5, INFINITE, 2.0), scorer=scorer)
    expected = detector(images())
    detector.save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert_equal(loaded(images()), expected)
    assert loaded.spec.calibration == detector.spec.calibration
    assert loaded.spec.scorer == scorer
    assert not loaded.training


def test_saving_again_changes_nothing(saved: Path, tmp_path: Path) -> None:
    Detector.load(saved).save(tmp_path / "again")
    for name in (SPEC_NAME, WEIGHTS_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_loading_needs_no_weights_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmad_dist.features.backbones._bundled_weights", lambda name: pytest.fail("not needed"))
    stored = load_file(saved / WEIGHTS_NAME)
    for name, tensor in Detector.load(saved).state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_run_directories_and_folders_are_found(saved: Path, tmp_path: Path) -> None:
    assert locate_detector(str(saved)) == saved
    assert locate_detector(str(tmp_path)) == saved
    assert_equal(Detector.load(tmp_path)(images()), Detector.load(saved)(images()))


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_place_without_a_detector_is_named(tmp_path: Path, name: str) -> None:
    assert f"{tmp_path / name}: no detector here" in refusal(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_description_is_refused(saved: Path, content: bytes) -> None:
    (saved / SPEC_NAME).write_bytes(content)
    assert f"{saved / SPEC_NAME}: not a readable detector" in refusal(saved)


@pytest.mark.parametrize("number", [1, 99])
def test_a_description_of_another_version_is_refused(saved: Path, number: int) -> None:
    edit(saved, lambda spec: spec.update(format=f"fmad-detector/{number}"))
    message = refusal(saved)
    assert f"{saved / SPEC_NAME}: its format is fmad-detector/{number}" in message
    assert "fmad export" in message


@pytest.mark.parametrize("key", ["calibration", "seed", "weights_sha256"])
def test_a_changed_description_is_refused(saved: Path, key: str) -> None:
    changes: dict[str, Any] = {"calibration": None, "seed": 4, "weights_sha256": "0" * 64}
    edit(saved, lambda spec: spec.update({key: changes[key]}), sign=False)
    assert f"{saved / SPEC_NAME}: changed after it was written" in refusal(saved)


@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_in_place_of_the_weights_is_not_opened(
    saved: Path, tmp_path: Path, signed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from fmad_dist.cli import main

    photo = tmp_path / "photos" / "one.png"
    photo.parent.mkdir()
    Image.new("RGB", (8, 8)).save(photo)
    for write in (lambda path, what: path.write_bytes(pickle.dumps(what)), lambda path, what: torch.save(what, path)):
        write(saved / WEIGHTS_NAME, {"network": Payload(tmp_path / "executed")})
        if signed:
            digest = hashlib.sha256((saved / WEIGHTS_NAME).read_bytes()).hexdigest()
            edit(saved, lambda spec, digest=digest: spec.update(weights_sha256=digest))
        with pytest.raises(SystemExit) as caught:
            main(["predict", "--model", str(saved), "--source", str(photo.parent), "--out", str(tmp_path / "out")])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert f"{saved / WEIGHTS_NAME}: not readable weights" in said
        assert said.count("\n") == 1
        assert not (tmp_path / "executed").exists()
    torch.load(io.BytesIO((saved / WEIGHTS_NAME).read_bytes()), weights_only=False)
    assert (tmp_path / "executed").exists()  # so it was a pickle that runs code


@pytest.mark.parametrize("below", ["", "/detector"])
def test_detectors_at_urls_are_found(saved: Path, tiny_detector: Detector, below: str) -> None:
    url = f"memory://{saved.parent.name}{below.replace('/', '-')}"
    for path in saved.iterdir():
        Store(url + below).write(path.name, path.read_bytes())
    expected = tiny_detector(images())
    for source in (url, saved.as_uri(), f"{url}/"):
        assert_equal(Detector.load(source)(images()), expected)
    Store(url + below).write(WEIGHTS_NAME, b"x" * 100)
    message = refusal(url)
    assert message.startswith(f"{url}/{WEIGHTS_NAME}: not readable weights")


@pytest.mark.parametrize("url", ["memory://nothing/here", "file:///nothing/here", "nosuch://x"])
def test_a_url_without_a_detector_is_named(url: str) -> None:
    assert url in refusal(url)


def test_the_bad_field_of_a_description_is_named(saved: Path) -> None:
    edit(saved, lambda spec: spec["scorer"].update(steps=0))
    assert "scorer.steps: Input should be greater than or equal to 1" in refusal(saved)


@pytest.mark.parametrize("keep", [0, 5, 5000, -1])
def test_truncated_weights_are_refused(saved: Path, keep: int) -> None:
    path = saved / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: not readable weights" in refusal(saved)


def test_missing_weights_are_refused(saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    assert str(saved / WEIGHTS_NAME) in refusal(saved)


def test_one_flipped_bit_of_the_weights_is_noticed(saved: Path) -> None:
    path = saved / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    assert f"{path}: changed after it was written" in refusal(saved)


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    edit(saved, lambda spec: spec["network"].update(width=16))
    message = refusal(saved)
    assert "do not fit detector.json" in message
    assert "network." in message


def test_weights_of_another_detector_are_refused(saved: Path, make_detector: MakeDetector, tmp_path: Path) -> None:
    other = make_detector((1.0, 2.0))
    with torch.no_grad():
        other.network.head.weight.mul_(1.5)
    other.save(tmp_path / "other")
    (saved / WEIGHTS_NAME).write_bytes((tmp_path / "other" / WEIGHTS_NAME).read_bytes())
    assert WEIGHTS_NAME in refusal(saved)


def test_foreign_tensors_are_refused(saved: Path) -> None:
    from safetensors.torch import save_file

    save_file({"something": torch.zeros(3)}, saved / WEIGHTS_NAME)
    assert "do not fit detector.json" in refusal(saved)


def test_a_failed_save_leaves_the_old_detector(
    saved: Path, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = tiny_detector.with_calibration(ANOTHER)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        other.save(saved)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
