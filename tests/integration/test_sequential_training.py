"""Training from tars without an index, as a user starts it."""

import json

import pytest

from fmad_dist.training.data import GUARANTEES
from tests.integration.jobs import Job, fmad

pytestmark = pytest.mark.slow


def test_tars_without_an_index_train_a_detector(job: Job) -> None:
    """Our own tars, whose index is not used: the images of the test tars are left out by their name."""
    words = ["train", "--config", str(job.config()), "--processes", "1", "name=sequential", "features.cache=null"]
    done = fmad(*words, "data.mode=sequential", "data.workers=1")
    assert GUARANTEES in done.stdout
    samples = job.samples("sequential")
    assert sorted(samples) == list(range(48))
    assert all(name.startswith("data/all/train/tiny/") and "/test/" not in name for name in samples.values())
    first_pass = [samples[position] for position in range(24)]
    assert len(set(first_pass)) == 24
    assert len(job.losses("sequential")) == 6
    spec = json.loads((job.run("sequential") / "detector" / "detector.json").read_text())
    assert spec["class_names"] == ["data/all"]
    again = fmad(*words, check=False)
    assert again.returncode == 2, "the indexed stream does not go on from a sequential checkpoint"
    assert "its sample stream is another one" in again.stderr
    assert "Traceback" not in again.stderr
