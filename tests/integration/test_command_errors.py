"""Bad input to the commands: one sentence that names the place, exit code 2, no traceback."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmad_dist import cli
from fmad_dist.tracking.server import connect
from tests.integration.jobs import Job


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command in this process; returns its one error line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.setps=3", "unknown key 'train.setps'; did you mean 'train.steps'?"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("features.backbone=tf_eficientnet_lite0", "did you mean tf_efficientnet_lite0"),
        ("features.taps=[0,9]", "cannot give the stages [0, 9]"),
        ("features.weights=/nowhere/w.pth", "/nowhere/w.pth does not exist"),
        ("features.image_size=128", "stores 64 px images"),
        ("data.manifests=[/nowhere]", "/nowhere/manifest.json: not found"),
        ("data.manifests=[]", "data.manifests: empty"),
        ("train.global_batch=7", "not a multiple of the 2 processes"),
        ("output=/proc/nowhere", "cannot be written"),
        ("train.steps", "write it as section.key=value"),
    ],
)
def test_train(job: Job, capsys: pytest.CaptureFixture[str], override: str, expected: str) -> None:
    config = str(job.config())
    assert expected in say(capsys, "train", "--config", config, "--processes", "2", "name=bad", override)
    assert not job.run("bad").exists()


def test_evaluate_and_predict_name_what_is_missing(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert "no detector here" in say(capsys, "evaluate", "--model", str(tmp_path), "--data", job.manifest, "--out", out)
    assert "no detector here" in say(capsys, "predict", "--model", "nothing", "--source", out, "--out", out)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """An empty working folder, and a function that makes MLflow forget which server it was given."""
    import mlflow

    def forget() -> None:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            monkeypatch.delenv(name, raising=False)

    forget()
    monkeypatch.chdir(tmp_path)
    yield forget
    forget()


def test_reading_a_registry_never_makes_one(
    no_server: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither at a mistyped place nor where MLflow looks by itself."""
    rest = ["--source", "photos", "--out", "out"]
    for model in ("models:/fmad@candidate", "runs:/0123/model"):
        for where, place in (([], tmp_path), (["--tracking-uri", f"sqlite:///{tmp_path}/typo/mlflow.db"], "typo")):
            text = say(capsys, "predict", "--model", model, *rest, *where)
            assert f"{place}/mlflow.db: no registry is there; name one by MLFLOW_TRACKING_URI" in text
            no_server()
    assert list(tmp_path.iterdir()) == []
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    text = say(capsys, "predict", "--model", "models:/fmad@candidate", *rest)
    assert "models:/fmad@candidate: not in the registry" in text


@pytest.mark.parametrize("option", ["--processes", "--workers"])
def test_numbers_of_processes_are_not_negative(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "--model", "m", "--data", "d", "--out", "o", option, "-1"])
    assert stopped.value.code == 2
    assert f"Invalid value for '{option}'" in capsys.readouterr().err


def test_follow_says_at_once_if_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out: memory://x is not a run directory" in say(capsys, "follow", "--run", "memory://x")
    text = say(capsys, "follow", "--once", "--run", str(tmp_path / "nothing"))
    assert f"{tmp_path / 'nothing'}: no complete checkpoint" in text
    assert not (tmp_path / "nothing").exists()


def test_truncated_shard_names_the_shard(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "data"
    shutil.copytree(job.manifest, broken)
    shard = next((broken / "shards").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:5000])
    text = say(
        capsys,
        *("train", "--config", str(job.config()), "--processes", "2", "name=cut"),
        f"data.manifests=[{broken}]",
        f"features.cache={tmp_path / 'features'}",
    )
    assert f"{shard}" in text
    assert "data.max_bad_samples: " in text
    assert "truncated or changed" in text
    assert not list((tmp_path / "features").rglob("cache.json"))
