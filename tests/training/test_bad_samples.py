"""Damaged samples are counted once each, over ranks and restarts, and stop a run above the limit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.evaluate import EvaluationOptions, run_evaluation
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.reader import BadSample
from fmad_dist.tracking.record import RunRecord
from fmad_dist.training.bad_samples import LOG_NAME, BadSamples
from tests.support.fake_world import FakeWorld


def bad(name: str) -> BadSample:
    return BadSample(f"toy/a/train/good/{name}", "s3://b/shards/x.tar", "is no readable image (cut)")


def test_each_is_told_and_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord(tmp_path, is_main=True)
    found = BadSamples(2, record, World())
    found.note([bad("1"), bad("1"), bad("2")])
    assert found.num_new == 2
    assert found.settle() == 2
    found.note([bad("1")])
    assert (found.num_new, found.settle()) == (0, 2)
    lines = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert [line["sample_id"][-1] for line in lines] == ["1", "2"]
    assert lines[0]["url"] == "s3://b/shards/x.tar"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "skipped damaged sample 1 of at most 2: s3://b/shards/x.tar: sample toy/a/train/good/1" in told[0]

    resumed = BadSamples(2, record, World())  # after a restart
    assert len(resumed.known) == 2
    resumed.note([bad("3")])
    with pytest.raises(UserError, match=r"data\.max_bad_samples: 3 damaged samples, 2 allowed; .*good/3"):
        resumed.settle()


def test_a_line_that_a_crash_has_cut_swallows_no_later_one(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, is_main=True)
    (tmp_path / LOG_NAME).write_text('{"sample_id": "toy/a/train/good/1", "url": "", "reason": ""}\n{"sample_id": "to')
    found = BadSamples(9, record, World())
    found.note([bad("2"), bad("3")])
    assert found.settle() == 3
    assert BadSamples(9, record, World()).known == {f"toy/a/train/good/{n}" for n in "123"}


def test_ranks_are_counted_together(tmp_path: Path) -> None:
    """Two ranks meet one sample each and one that both know: three in all."""
    record = RunRecord(tmp_path, is_main=True)
    world = FakeWorld(size=2, gathered=lambda item: [item, [bad("2"), bad("3")]])
    found = BadSamples(3, record, world)
    found.note([bad("1"), bad("2")])
    assert found.settle() == 3
    strict = BadSamples(0, RunRecord(tmp_path / "strict", is_main=True), World())
    strict.note([bad("9")])
    with pytest.raises(UserError, match="1 damaged samples, 0 allowed"):
        strict.settle()


def test_an_evaluation_without_a_test_image_is_none(own_copy: Path, tmp_path: Path, tiny_detector: Detector) -> None:
    """Results that leave an image out would not be those of the benchmark."""
    dataset = load_dataset(str(own_copy))
    sample = dataset.sample(int(dataset.indices("test")[2]))
    assert sample.image is not None
    copy = Path(shutil.copytree(own_copy, tmp_path / "copy"))
    data = bytearray(Store(copy).read(sample.shard))
    data[sample.image.offset + 50] ^= 1
    (copy / sample.shard).write_bytes(bytes(data))
    tiny_detector.save(tmp_path / "model")
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match=sample.sample_id):
        run_evaluation(EvaluationOptions(str(tmp_path / "model"), (str(copy),), str(tmp_path / "out")), World())
    torch.set_num_threads(threads)
