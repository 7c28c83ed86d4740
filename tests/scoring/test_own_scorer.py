"""The example of docs/methods.md, installed as a package of its own, goes through train, evaluate and predict."""

import json
import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.config import scorers
from fmad_dist.detector import Detector
from tests.integration.jobs import Job, convert_tree, fmad, make_product_tree
from tests.support.packages import install

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def example() -> tuple[str, dict[str, dict[str, str]]]:
    """The code of the example and its entry points by group."""
    (section,) = re.findall(r"^## A scorer of your own\n(.*?)^## ", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert section.count("\n") <= 40
    (code,), (registered,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "toml"))
    return code, tomllib.loads(registered)["project"]["entry-points"]


@pytest.mark.slow
def test_the_example_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, "my_scorers", *example())
    tree = make_product_tree(tmp_path / "products")
    job = Job(tmp_path, convert_tree(tree, tmp_path / "tiny"))
    run, config = job.run("speed"), job.config(steps=2, checkpoint_every=2)
    options = ["name=speed", "scorer.name=speed", "scorer.time=0.8"]
    given = {"PYTHONPATH": str(packages)}
    fmad("train", "--config", str(config), "--processes", "1", *options, **given)
    evaluation, prediction = tmp_path / "evaluation", tmp_path / "prediction"
    words = ("evaluate", "--model", str(run), "--data", job.manifest, "--processes", "1", "--out", str(evaluation))
    fmad(*words, **given)
    source = ("--source", str(tree / "disc" / "test" / "spot"))
    words = ("predict", "--model", str(run), "--processes", "1", "--out", str(prediction))
    fmad(*words, *source, **given)
    results = json.loads((evaluation / "results.json").read_text())
    assert 0.0 <= results["mean"]["image_auroc"] <= 1.0
    scores = pq.read_table(prediction / "scores.parquet").column("score").to_pylist()
    assert len(scores) == 4

    with pytest.raises(UserError, match=r"scorer\.name: unknown scorer 'speed'; choose one of ddim"):
        Detector.load(run)  # where the package is not installed
    monkeypatch.syspath_prepend(packages)
    scorers._registered.cache_clear()
    detector = Detector.load(run)
    assert detector.spec.scorer.model_dump() == {"name": "speed", "time": 0.8}
    assert detector.spec.calibration is not None
    x = torch.randn(2, detector.spec.network.channels, 4, 4)
    expected = detector.field(x, torch.full((2,), 0.8)).square().mean(dim=1)
    torch.testing.assert_close(detector.scorer(detector.field, x, [0, 1]), expected)
    scorers._registered.cache_clear()
