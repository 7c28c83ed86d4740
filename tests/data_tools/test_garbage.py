"""Only what nothing names goes, and only when it is old enough."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.conversion.convert import convert
from data_tools.garbage import collect, parse_age
from data_tools.lint import lint
from fmad_dist.base.errors import UserError
from fmad_dist.cli.data import app
from fmad_dist.storage import Store
from tests.data_tools.conversion.test_records import SHARD_MB, Killed, Saboteur
from tests.data_tools.small_trees import noise, save


def age(folder: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_replaced_shards_go_when_they_are_old(options, tree, tmp_path):
    out = tmp_path / "out"
    old = convert(options()).manifest
    age(out, 30)
    save(tree / "bolt/train/good/000.png", noise(999))
    new = convert(options()).manifest
    gone = {shard.name for shard in old.shards} - {shard.name for shard in new.shards} | {old.index.name}
    assert collect(str(out), timedelta(hours=24)).removed == ()  # read until now, however old they are
    age(out, 30)
    assert {found.where for found in lint(str(out)).findings} == gone
    planned = collect(str(out), timedelta(hours=24), dry_run=True)
    assert {entry.name for entry in planned.removed} == gone
    assert all((out / name).exists() for name in gone)
    found = collect(str(out), timedelta(hours=24))
    assert {entry.name for entry in found.removed} == gone
    assert lint(str(out)).findings == ()
    assert collect(str(out), timedelta(0)).removed == ()


def test_young_files_and_foreign_files_stay(options, tree, tmp_path):
    out = tmp_path / "out"
    convert(options())
    save(tree / "bolt/train/good/000.png", noise(999))
    convert(options())
    (out / "notes.txt").write_text("mine")
    found = collect(str(out), timedelta(hours=24))
    assert (found.removed, found.kept, found.foreign) == ((), 2, 1)
    collect(str(out), timedelta(0))
    assert (out / "notes.txt").exists()
    assert [entry.where for entry in lint(str(out)).findings] == ["notes.txt"]


def test_a_running_conversion_keeps_what_it_stored(options, tree, tmp_path, monkeypatch):
    """Its first shards may be older than the limit; its newest record says that it is alive."""
    out = tmp_path / "out"
    convert(options())
    save(tree / "bolt/train/good/000.png", noise(999))
    Saboteur(monkeypatch).arm(2 * 4 + 1, after=False)
    with pytest.raises(Killed):
        convert(options(shard_mb=SHARD_MB))
    age(out, 30)
    newest = max(out.glob("journal/*/*.parquet"))
    os.utime(newest)
    assert collect(str(out), timedelta(hours=24)).removed == ()
    assert lint(str(out)).findings == ()
    monkeypatch.undo()
    assert convert(options(shard_mb=SHARD_MB)).num_resumed == 4


def test_a_dead_conversion_is_removed(options, tmp_path, monkeypatch):
    out = tmp_path / "out"
    Saboteur(monkeypatch).arm(2 * 4 + 2, after=False)
    with pytest.raises(Killed):
        convert(options(shard_mb=SHARD_MB))
    age(out, 30)
    found = collect(str(out), timedelta(hours=24))
    assert len(found.removed) == 4 + 5  # records, and shards of which the last was not noted yet
    assert Store(str(out)).list() == []
    assert list(out.iterdir()) == [out / "shards"] or not list(out.iterdir())


def test_a_damaged_manifest_stops_it(options, tmp_path):
    convert(options())
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="nothing is removed"):
        collect(str(tmp_path / "out"), timedelta(0))


def test_command(options, tree, tmp_path):
    convert(options())
    save(tree / "bolt/train/good/000.png", noise(999))
    convert(options())
    run = CliRunner().invoke
    arguments = ["gc", options().out, "--older-than", "0s"]
    assert "2 files of" in run(app, [*arguments, "--dry-run"]).output
    output = run(app, arguments).output
    assert "removed shards/train-000000-" in output
    assert "0 files of 0 bytes removed" in run(app, arguments).output


@pytest.mark.parametrize("text", ["", "5", "h", "5y", "-5h", "1.5h"])
def test_bad_ages(text):
    with pytest.raises(UserError, match="--older-than"):
        parse_age(text)
    assert parse_age("90s") == timedelta(seconds=90)
    assert parse_age("7d") == timedelta(days=7)
