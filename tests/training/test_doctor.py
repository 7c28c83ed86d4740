"""Each check of the doctor on what it must find, with nodes simulated and with real folders and a real MLflow store."""

from pathlib import Path
from typing import Any

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import parse_config
from fmad_dist.training.doctor import (
    Check,
    check_clocks,
    check_disks,
    check_gpus,
    check_temporary,
    check_tracking,
    checkpoint_size,
    examine,
    report,
    same_everywhere,
)


def alone(item: Any) -> list[Any]:
    return [item]


def test_versions_that_differ_are_named() -> None:
    ours, theirs = "python 3.12.1, torch 2.9.0, numpy 2.1", "python 3.12.1, torch 2.8.0, numpy 2.1"
    assert same_everywhere("versions", [ours, ours], "install").problem is None
    found = same_everywhere("versions", [ours, ours, theirs], "install the same versions on all nodes")
    assert str(found) == (
        "FAIL  versions: rank 2 has torch 2.8.0, rank 0 has torch 2.9.0; install the same versions on all nodes"
    )


def test_gpus() -> None:
    assert check_gpus(["8 x H200"] * 16, [0] * 8 + [1] * 8).problem is None
    assert check_gpus(["none", "none"], [0, 1]).problem is None
    assert "rank 1 has 7 x H200" in str(check_gpus(["8 x H200", "7 x H200"], [0, 1]))
    assert "9 processes per node for 8 x H200" in str(check_gpus(["8 x H200"] * 9, [0] * 9))


def test_clocks_and_disks() -> None:
    assert str(check_clocks([100.0, 100.5])) == "ok    clocks: 0.50 s apart"
    assert "rank 1 is 60 s ahead" in str(check_clocks([100.0, 160.0, 100.0]))
    assert check_disks([("a", 50 << 30), ("b", 20 << 30)]).problem is None
    assert "1.0 GiB left on b" in str(check_disks([("a", 50 << 30), ("b", 1 << 30)]))
    assert check_temporary([("a", 50 << 30), ("b", 20 << 30)], 20 << 30).problem is None
    told = str(check_temporary([("a", 50 << 30), ("b", 1 << 30)], 20 << 30))
    assert "1.0 GiB left on b, a resume needs 20.0; set TMPDIR" in told


def test_the_size_of_a_checkpoint_is_known_before_there_is_one(tiny_url: str) -> None:
    tree = {"train": {"checkpoint_url": "memory://none"}, "features": {"image_size": 64, "grid": 4, "taps": [1, 2]}}
    tree["data"] = {"manifests": [tiny_url]}
    size = checkpoint_size(parse_config(tree, "test"))
    assert size % 16 == 0
    assert 16 * 2.5e6 < size < 16 * 3.5e6  # the network has 2.9 million parameters
    assert checkpoint_size(parse_config(tree | {"data": {"manifests": ["memory://nothing"]}}, "test")) == 0


def test_a_whole_examination(tmp_path: Path) -> None:
    """Real folders and a real MLflow database: what is there passes, what is not fails, and nothing is left behind."""
    manifest = tmp_path / "data" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    (tmp_path / "file").write_text("not a folder")
    tree = {
        "output": str(tmp_path / "runs"),
        "data": {"manifests": [str(manifest.parent), str(tmp_path / "missing")]},
        "features": {"cache": str(tmp_path / "file" / "cache")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    lines = {check.name: check for check in examine(parse_config(tree, "test"), World())}
    failed = {name for name, check in lines.items() if check.problem}
    cache = tree["features"]["cache"]  # type: ignore[index]
    assert failed - {"free disk"} == {f"read {tmp_path / 'missing'}", f"write, read and delete {cache}"}
    assert str(tmp_path / "missing" / "manifest.json") in str(lines[f"read {tmp_path / 'missing'}"])
    assert str(lines["MLflow"]).endswith("mlflow.db: create, log, register")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_an_mlflow_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = parse_config({"tracking": {"uri": "http://127.0.0.1:9"}}, "test")
    assert "http://127.0.0.1:9 does not let us create an experiment" in str(check_tracking(config))
    off = parse_config({"tracking": {"mlflow": False}}, "test")
    assert str(check_tracking(off)) == "ok    MLflow: off (tracking.mlflow=false)"


def test_the_report_counts_failures(capsys: pytest.CaptureFixture[str]) -> None:
    report(iter([Check("a", "fine")]), World())
    with pytest.raises(UserError, match="1 checks failed"):
        report(iter([Check("a", "fine"), Check("b", "", "broken; repair it")]), World())
    assert capsys.readouterr().out == "ok    a: fine\n" * 2 + "FAIL  b: broken; repair it\n"
