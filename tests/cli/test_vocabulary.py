"""The words of the command line: one meaning each, there wherever they apply, and the same under a launcher."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.cli import app
from fmad_dist.cli.options import resolve_run

ROOT = Path(__file__).parents[2]
JOBS = {"train", "doctor", "evaluate", "predict", "compare", "follow"}
BENCH = {f"bench {name}" for name in ("plan", "prepare", "run", "collect")}
REGISTRY = {f"registry {name}" for name in ("list", "show", "promote", "rollback", "compare", "download")}
DATA = {f"data {name}" for name in ("convert", "seal", "index", "gc", "info", "lint", "preview", "plan")}
WORDS = {  # the commands that take a shared option; no other does
    "--config": {"train", "doctor", "compare", "demo", "data plan", "config show"} | BENCH,
    "--data": {"train", "doctor", "evaluate", "predict", "compare", "calibrate", "view", "data plan"},
    "--source": {"predict", "calibrate", "export-onnx", "demo", "data convert", "data index"},
    "--run": {"follow", "export", "calibrate", "registry register"},
    "--model": {"evaluate", "predict", "compare", "calibrate", "export-onnx", "serve", "registry register"},
    "--overwrite": {"evaluate", "predict", "compare", "calibrate", "export", "export-onnx", "registry download"}
    | {"data convert", "data seal", "data index"},
    "--processes": JOBS | {"demo", "bench plan", "bench run"},
    "--workers": {"evaluate", "bench plan", "bench run", "data convert"},
    "--max-restarts": {"train", "bench plan", "bench run"},
    "--save-every": {"evaluate", "predict", "compare", "bench plan", "bench run"},
    "--tracking-uri": {"train", "doctor", "evaluate", "predict", "compare", "calibrate", "export-onnx", "serve"}
    | BENCH
    | REGISTRY,
    "--endpoint-url": JOBS
    | {"calibrate", "export", "export-onnx", "view", "serve", "status", "registry promote"}
    | BENCH
    | DATA,
}
GONE = {"--manifest", "--images", "--prepare", "--collect"}


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    """Every command by its words after `fmad`."""
    found: dict[str, Any] = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        below = commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {}
        found |= below or {prefix + name: command}
    return found


def options(command: Any) -> dict[str, Any]:
    return {param.opts[0]: param for param in command.params if param.param_type_name == "option"}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_there_wherever_it_applies(word: str) -> None:
    assert {name for name, command in commands().items() if word in options(command)} == WORDS[word]


def test_no_option_has_an_old_name() -> None:
    assert {word for command in commands().values() for word in options(command)}.isdisjoint(GONE)


def test_zero_is_none_and_automatic_is_left_out() -> None:
    for name, command in commands().items():
        for word, option in options(command).items():
            if word == "--processes":
                assert (option.default, option.min) == (None, 1), name
            if word in ("--workers", "--max-restarts", "--max-bad"):
                assert option.min == 0, name
                assert "0 = n" in option.help, f"{name} {word} does not say what 0 is"


def test_a_word_has_one_meaning() -> None:
    """One help text, or a second one beside a configuration, whose value it replaces."""
    helps: dict[str, set[str]] = {}
    for command in commands().values():
        for word, option in options(command).items():
            helps.setdefault(word, set()).add(option.help)
    for word in ("--processes", "--max-restarts", "--save-every", "--compile", "--sensitivity", "--nodes", "--gpus"):
        assert len(helps[word]) == 1, word
    for word, begins in (
        ("--data", "URL of a converted dataset"),
        ("--endpoint-url", "S3 server"),
        ("--tracking-uri", "MLflow server"),
        ("--workers", "Processes that "),
    ):
        assert all(text.startswith(begins) for text in helps[word]), helps[word]


def test_options_replace_the_file_and_overrides_replace_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://of-the-environment")
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {manifests: [a], endpoint_url: 'http://of-the-file'}\ntracking: {uri: 'sqlite:///file.db'}\n"
    )
    options = {"data": ["b", "c, d"], "endpoint_url": "http://given:1", "tracking_uri": "sqlite:///given.db"}
    found = resolve_run(path, None, **options)
    assert (found.data.manifests, found.data.endpoint_url) == (("b", "c, d"), "http://given:1")
    assert found.tracking.uri == "sqlite:///given.db"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://given:1"
    assert resolve_run(path, ["data.manifests=[x]"], **options).data.manifests == ("x",)
    assert resolve_run(path, None).data.manifests == ("a",)
    with pytest.raises(UserError, match="write it as https://host"):
        resolve_run(path, None, endpoint_url="given")


def test_an_endpoint_is_set_before_the_command_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://of-the-environment")
    ended = CliRunner().invoke(app, ["data", "info", str(tmp_path), "--endpoint-url", "http://given:1"])
    assert "manifest.json: not found" in str(ended.exception)
    assert os.environ["AWS_ENDPOINT_URL"] == "http://given:1"


@pytest.mark.parametrize("words", [["--config", "five.yaml"], ["--config", "five.yaml", "--dry-run"]])
def test_bench_does_nothing_without_a_subcommand(words: list[str]) -> None:
    ended = CliRunner().invoke(app, ["bench", *words])
    assert ended.exit_code == 2
    assert "No such option: --config" in ended.output
    shown = CliRunner().invoke(app, ["bench"]).output
    assert all(name in shown for name in ("plan", "prepare", "run", "collect"))


def test_every_job_has_a_file_for_launchers_with_the_same_options() -> None:
    assert {path.stem for path in (ROOT / "launcher").glob("*.py")} == JOBS | {"__init__"}
    for name in JOBS:
        assert f'run("{name}")' in (ROOT / "launcher" / f"{name}.py").read_text()
        assert f"`accelerate launch launcher/{name}.py`" in (commands()[name].help or "").replace("\n", " ")
    shown = [
        subprocess.run([sys.executable, *words, "--help"], check=True, capture_output=True, cwd=ROOT).stdout
        for words in (["launcher/evaluate.py"], ["-m", "fmad_dist.cli", "evaluate"])
    ]
    assert shown[0] == shown[1]
