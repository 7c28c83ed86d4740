"""A comparison as a job: refused, killed, gone on with, and read again when nothing is left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.comparison.compare import ComparisonJob, ComparisonOptions, comparison_key, run_comparison
from fmad_dist.comparison.peer_training import TrainingFeatures
from fmad_dist.config.run import DataConfig, FeatureConfig, RunConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import read_spec
from fmad_dist.evaluation import labelled_images
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp
from fmad_dist.stream.mixture import Mixture

Compare = Callable[..., dict[str, Any]]
SCORERS = "own,endpoint"


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of two images each, and figures that nobody looks at."""
    monkeypatch.setattr(labelled_images, "BATCH", 2)
    monkeypatch.setattr("fmad_dist.comparison.table.draw", lambda rows: b"figure")


def config_of(url: str) -> RunConfig:
    features = FeatureConfig(image_size=64, grid=4, taps=(1, 2))
    return RunConfig(data=DataConfig(manifests=(url,), workers=0), features=features)


@pytest.fixture
def compare(make_detector: Callable[..., Detector], tiny_url: str, tmp_path: Path) -> Compare:
    mixture = Mixture.load([tiny_url])
    names = {"class_names": tuple(mixture.class_names), "manifest_digests": mixture.digests}
    make_detector((1.0, 2.0, 3.0), **names).save(tmp_path / "model")

    def start(out: Path, **options: Any) -> dict[str, Any]:
        chosen = {"scorers": SCORERS, "peers": "bank_pooled"} | options
        found = run_comparison(
            ComparisonOptions(config_of(tiny_url), str(out), str(tmp_path / "model"), **chosen), World()
        )
        assert found is not None
        return found

    return start


def no_more_scoring(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("something was loaded or scored")

    patch.setattr(Detector, "__init__", fail)
    patch.setattr(ComparisonJob, "score", fail)


def qualities(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What does not depend on how fast it went."""
    return {
        title: {key: row[key] for key in ("evaluations", "mean", "datasets", "classes")}
        for title, row in body["scorers"].items()
    }


def kill_after(patch: pytest.MonkeyPatch, num_batches: int) -> None:
    score, scored = ComparisonJob.score, []

    def dying(self: ComparisonJob, batch: Any) -> None:
        if len(scored) == num_batches:
            raise Killed
        scored.append(batch)
        score(self, batch)

    patch.setattr(ComparisonJob, "score", dying)


def test_killed_and_resumed_is_undisturbed(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = compare(tmp_path / "whole")
    assert list(whole["scorers"]) == ["inversion steps=2", "endpoint", "bank_pooled (peer)"]
    out = tmp_path / "killed"
    for num_batches in (0, 1):
        with monkeypatch.context() as patch:
            kill_after(patch, num_batches)
            with pytest.raises(Killed):
                compare(out, save_s=0.0)
    assert not (out / "comparison.json").exists()
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        patch.setattr(TrainingFeatures, "patches", lambda *_: pytest.fail("the peer was trained again"))
        found = compare(out)
    assert "2 images were scored before; going on with the others" in capsys.readouterr().out
    assert qualities(found) == qualities(whole)
    assert "Speed" not in whole["facts"]
    assert found["facts"]["Speed"].startswith("mean over the 2 processes of all starts")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_a_finished_comparison_is_read_again_and_another_is_refused(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = compare(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        no_more_scoring(patch)
        assert compare(out) == first
        assert "everything was scored before; nothing is left to do" in capsys.readouterr().out
        with pytest.raises(
            UserError,
            match=r"out: holds a comparison with Scorers own,endpoint instead of own and Peers bank_pooled instead of "
            r"none; choose another --out, or give --overwrite",
        ):
            compare(out, scorers="own", peers="")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(compare(out, scorers="own", peers="", overwrite=True)["scorers"]) == ["inversion steps=2"]


def test_comparisons_of_the_version_before_are_known(
    compare: Compare, tmp_path: Path, tiny_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stamp says the scorers and peers alone."""
    config, digests = config_of(tiny_url), Mixture.load([tiny_url]).digests
    out, body = Store(tmp_path / "out"), {"facts": {}, "left_out": {}, "scorers": {}}
    key = comparison_key(read_spec(tmp_path / "model"), config, digests, SCORERS, "bank_pooled")
    out.write("comparison.json", json.dumps(body).encode())
    write_stamp(out, key, {"Scorers": SCORERS, "Peers": "bank_pooled"}, ("comparison.json",))
    no_more_scoring(monkeypatch)
    assert compare(tmp_path / "out") == body
    with pytest.raises(UserError, match=r"holds a comparison with .*Scorers own,endpoint instead of own"):
        compare(tmp_path / "out", scorers="own")


def test_an_evaluation_is_never_replaced(compare: Compare, tmp_path: Path) -> None:
    write_stamp(Store(tmp_path / "out"), "key", {"Scorer": "inversion", "Protocol": "p", "Tested on": "d"}, ())
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds something else than a comparison; choose another --out"):
            compare(tmp_path / "out", overwrite=overwrite)
    assert (stamp := read_stamp(Store(tmp_path / "out"))) is not None
    assert stamp.key == "key"
