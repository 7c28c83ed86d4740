"""Conversions to a real S3 server that are killed, or that race each other."""

import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from data_tools.garbage import collect
from data_tools.lint import lint
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import load_manifest
from tests.integration.data_trees import make_plain_tree

pytestmark = pytest.mark.slow
KILLS = 20


def conversion(tree: Path, out: str, *more: str) -> list[str]:
    """The command of a conversion with two images in a shard."""
    words = ["data", "convert", "--dataset", "tiny", "--source", str(tree), "--out", out]
    words += ["--size", "32", "--shard-mb", "0.014", "--workers", "1", *more]
    return [sys.executable, "-m", "fmad_dist.cli", *words]


def test_killed_twenty_times(tmp_path: Path, bucket: str) -> None:
    tree = make_plain_tree(tmp_path / "tree", {"bolt": 130, "nut": 110})
    subprocess.run(conversion(tree, str(tmp_path / "undisturbed")), check=True, capture_output=True)
    seed = 20261124
    rng = random.Random(seed)
    print(f"seed {seed}")
    out, kills, progress, first_record = f"{bucket}/killed", 0, [0], 0.0
    while kills < KILLS:
        start = time.monotonic()
        with subprocess.Popen(conversion(tree, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            if not first_record:  # how long a run needs to get anything done on this machine, now
                while not Store(out).list("journal"):
                    assert process.poll() is None
                first_record = time.monotonic() - start
            else:
                time.sleep(rng.uniform(0.2, 1.4) * first_record)
            assert process.poll() is None, f"it ended before it was killed {KILLS} times: {process.stderr.read()!r}"
            process.kill()
        kills += 1
        progress.append(len(Store(out).list("journal")))
    assert progress == sorted(progress), "a run lost what an earlier one had finished"
    assert progress[-1] > 0
    assert not Store(out).exists("manifest.json")
    last = subprocess.run(conversion(tree, out), capture_output=True, text=True, check=True)
    assert f"went on after {progress[-1]} shards" in last.stdout
    assert load_manifest(out) == load_manifest(str(tmp_path / "undisturbed"))
    collect(out, timedelta(0))
    assert lint(out).findings == ()
    undisturbed, killed = Store(str(tmp_path / "undisturbed")), Store(out)
    assert killed.list() == undisturbed.list()
    assert {name: killed.sha256(name) for name in killed.list()} == {
        name: undisturbed.sha256(name) for name in undisturbed.list()
    }


@pytest.mark.parametrize("same", [True, False], ids=["same options", "other options"])
def test_two_at_once(tmp_path: Path, bucket: str, same: bool) -> None:
    """Both may do the work, one manifest is put; with other options the slower one is refused."""
    tree = make_plain_tree(tmp_path / "tree", {"bolt": 30})
    out = f"{bucket}/raced"
    commands = [conversion(tree, out), conversion(tree, out, *([] if same else ["--size", "40"]))]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for words in commands]
    outputs = [process.communicate(timeout=120) for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0, 0] if same else sorted(codes) == [0, 2], outputs
    refused = [errors for (_, errors), code in zip(outputs, codes, strict=True) if code]
    assert all("another conversion finished here first" in errors for errors in refused)
    assert lint(out).num_errors == 0
    collect(out, timedelta(0))
    report = lint(out)
    assert (report.findings, report.num_samples) == ((), 34)
    size = load_manifest(out).rendition.size
    assert size == (32 if same else [32, 40][codes.index(0)])
