"""A disk that is full, in every place that fmad writes to: one sentence that names the place, nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.conversion.convert import convert
from fmad_dist.base.errors import UserError, full_disk
from fmad_dist.base.process import leave_message
from fmad_dist.base.world import World
from fmad_dist.features.prepare import prepare_features
from fmad_dist.prediction.results import PictureFiles, Pictures
from fmad_dist.storage import Store
from fmad_dist.stream.block_cache import BlockCache
from fmad_dist.stream.mixture import Mixture
from fmad_dist.tracking.record import RunRecord, read_lines
from tests.data_tools.small_trees import make_tree
from tests.features.test_cache import CPU
from tests.features.test_prepare import images_of, run_config
from tests.support.full_disk import fill, small_disk


@pytest.fixture
def disk(tmp_path: Path):
    with small_disk(tmp_path / "disk", 400_000) as folder:
        yield folder


def write_many(record: RunRecord) -> None:
    for step in range(2, 1000):
        record.metrics(step, {"loss": 1.0})


def test_the_record_of_a_run(disk: Path) -> None:
    record = RunRecord(disk / "run", is_main=True)
    record.metrics(1, {"loss": 1.0})
    record.write("config.yaml", "before\n")
    fill(disk)
    with pytest.raises(UserError, match=r"metrics\.jsonl: no room \(No space left on device\); free some space"):
        write_many(record)
    lines = (disk / "run" / "metrics.jsonl").read_text()
    assert lines.endswith("}\n")
    assert [line["step"] for line in read_lines(disk / "run" / "metrics.jsonl")] == list(
        range(1, lines.count("\n") + 1)
    )
    with pytest.raises(UserError, match=r"config\.yaml: no room"):
        record.write("config.yaml", "x" * 10_000)
    assert (disk / "run" / "config.yaml").read_text() == "before\n"
    with pytest.raises(UserError, match=r"bad_samples\.jsonl: no room"):
        record.append("bad_samples.jsonl", {"sample_id": "x" * 10_000})
    (disk / "filler").unlink()
    record.metrics(1000, {"loss": 1.0})
    assert read_lines(disk / "run" / "metrics.jsonl")[-1]["step"] == 1000
    assert not list(disk.rglob(".tmp-*"))


def test_a_store_keeps_what_it_had(disk: Path) -> None:
    store = Store(disk / "out")
    store.write("scores.csv", b"before")
    fill(disk)
    with pytest.raises(UserError, match=r"out/scores\.csv: no room \(No space left on device\)"):
        store.write("scores.csv", bytes(100_000))
    assert store.read("scores.csv") == b"before"
    assert store.list() == ["scores.csv"]
    assert not list(disk.rglob(".tmp-*"))


def test_pictures_of_a_prediction(disk: Path) -> None:
    files = PictureFiles(str(disk / "out"), Pictures.ALL)
    fill(disk)
    files.add("a", np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.float32), True)
    with pytest.raises(UserError, match=r"maps/a\.png: no room"):
        files.wait()


def test_the_block_cache(disk: Path) -> None:
    cache = BlockCache(disk / "cache", 1 << 30)
    fill(disk)
    with pytest.raises(UserError, match=r"data\.cache .*cache: cannot be written"):
        cache.get("ab12", 0, 100_000, lambda: bytes(100_000))
    assert not cache.has("ab12")


def test_the_feature_cache(disk: Path, tiny_mixture: Mixture) -> None:
    """Refused, and complete when there is room again."""
    fill(disk, left=10_000)
    rows = tiny_mixture.rows("train")
    with pytest.raises(UserError, match=r"disk/features/.*: no room"):
        prepare_features(run_config(disk / "features"), images_of(tiny_mixture, rows), World(), CPU)
    (disk / "filler").unlink()
    prepared = prepare_features(run_config(disk / "features"), images_of(tiny_mixture, rows), World(), CPU)
    assert prepared.cached
    assert not list(disk.rglob(".tmp-*"))


def test_a_conversion(disk: Path, tmp_path: Path) -> None:
    from data_tools.conversion.convert import Conversion

    fill(disk, left=20_000)
    options = Conversion(
        layout="mvtec", dataset="tiny", source=make_tree(tmp_path), out=str(disk / "out"), size=64, num_workers=1
    )
    with pytest.raises(UserError, match=r"disk/out/.*: .*(No space left|no room)"):
        convert(options)
    assert not (disk / "out" / "manifest.json").exists()


def test_the_sentence_of_a_rank_is_said_by_itself_then(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMAD_ERROR_FILE", str(disk / "error"))
    fill(disk)
    assert not leave_message("x" * 10_000, 2)
    assert not list(disk.glob("error*"))


def test_whatever_else_is_written() -> None:
    told = full_disk(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x"))
    assert (
        str(told)
        == "/tmp/x: no room (No space left on device); free some space, or choose another place, and start again."
    )
    assert full_disk(OSError(errno.EIO, "")) is None


def command(*words: str, stdout: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fmad_dist.cli", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,  # type: ignore[call-overload]
    )


def test_an_output_that_nobody_reads_is_no_failure() -> None:
    """A pipe whose reader has left, and a full device: the command ends as it would, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    for stdout, said in ((writer, ""), (os.open("/dev/full", os.O_WRONLY), "standard output cannot be written")):
        process = command("config", "schema", stdout=stdout)
        _, errors = process.communicate()
        os.close(stdout)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert said in errors


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    """While `fmad view` serves, and in the same way in every other command."""
    script = "import time, fmad_dist.cli as c\nc.config.show = None\n"
    script += (
        "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\nc.app.command('wait')(wait)\nc.run('wait')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped by Ctrl-C\n")
