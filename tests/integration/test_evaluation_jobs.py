"""Evaluation, registry and prediction of a trained run, in real processes."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import webdataset

from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.labelled_images import LabelledImages, shards_of_test_split
from fmad_dist.prediction.predict import PredictionOptions, run_prediction
from fmad_dist.prediction.results import TABLE_NAME, read_parquet
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.storage import Store
from fmad_dist.stream.mixture import Mixture
from tests.integration.jobs import LAUNCH_SECONDS, LAUNCHER, SIDE, Job, fmad, launched, ranks_of

pytestmark = pytest.mark.slow


TABLES = ("results.json", "results.csv", "scores.csv", "results.md", "results.tex")


def files(out: Path) -> dict[str, bytes]:
    """What an evaluation wrote, without what it measured about its own speed."""
    report = (out / "report.html").read_bytes()
    found, num_cuts = re.subn(rb"<!-- measured -->.*?<!-- /measured -->", b"", report, flags=re.DOTALL)
    assert num_cuts == 1
    return {name: (out / name).read_bytes() for name in TABLES} | {"report.html": found}


@pytest.fixture(scope="session")
def registry(job: Job) -> str:
    return f"sqlite:///{job.root / 'runs' / 'mlflow.db'}"


def test_results_are_bit_identical_for_any_number_of_processes(job: Job, zero2: Path, registry: str) -> None:
    outputs = []
    for processes in (1, 2):
        out = job.root / f"results-{processes}"
        model = ["--model", "models:/fmad@candidate", "--tracking-uri", registry]
        fmad("evaluate", *model, "--data", job.manifest, "--out", str(out), "--processes", str(processes))
        outputs.append(files(out))
        speed = json.loads((out / "speed.json").read_text())
        assert len(speed["processes"]) == processes
        assert speed["num_images"] == sum(one["num_images"] for one in speed["processes"]) == 27
        assert (
            0 < speed["images_per_s_of_a_process"] <= speed["images_per_s"] <= processes * 27 / speed["seconds"]["read"]
        )
    assert outputs[0] == outputs[1]
    results = json.loads(outputs[0]["results.json"])
    assert sorted(results["classes"]) == ["tiny/bar", "tiny/disc", "tiny/ring"]
    assert [results["classes"][name]["num_images"] for name in results["classes"]] == [9, 9, 9]
    assert 0.5 < results["mean"]["image_auroc"] <= 1.0
    check_registry(registry, results)
    as_others = job.root / "results-flowad"
    words = [*model, "--data", job.manifest, "--out", str(as_others), "--processes", "2", "--protocol", "flowad"]
    assert "Biased estimates" in fmad("evaluate", *words).stdout
    assert json.loads((as_others / "results.json").read_text())["protocol_title"] == "flowad v1 (biased)"
    check_registry(registry, results)  # still the numbers of its own protocol
    assert "models:/fmad/1, now models:/fmad@candidate, MLflow run " in outputs[0]["report.html"].decode()


def test_an_evaluation_by_accelerate_launch_is_logged_and_passes_the_gate(job: Job, zero2: Path, registry: str) -> None:
    """Two ranks of launcher/evaluate.py do all that `fmad evaluate` does."""
    import mlflow

    client, tag = mlflow.MlflowClient(registry, registry), "fmad.evaluation"
    version = client.get_model_version_by_alias("fmad", "candidate")
    if tag in version.tags:  # of `fmad evaluate`
        client.delete_model_version_tag("fmad", version.version, tag)
    out = job.root / "results-launched"
    words = ["--model", "models:/fmad@candidate", "--data", job.manifest, "--out", str(out)]
    done = launched(LAUNCHER / "evaluate.py", *words, "--tracking-uri", registry)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("report: ") == 1  # one rank sums up
    check_registry(registry, json.loads((out / "results.json").read_text()))
    evaluated = json.loads(client.get_model_version_by_alias("fmad", "candidate").tags[tag])
    assert evaluated["manifests"] == [job.manifest]
    promoted = fmad("registry", "promote", f"models:/fmad/{version.version}", "--tracking-uri", registry)
    assert "promoted to champion" in promoted.stdout
    again = launched(LAUNCHER / "evaluate.py", *words, "--tracking-uri", registry, "--protocol", "ader")
    assert again.returncode != 0
    assert again.stderr.count(f"error: {out}") >= 1


def test_a_killed_evaluation_goes_on(job: Job, zero2: Path) -> None:
    """SIGKILL a rank in the middle; another number of processes scores the rest: the bits of an undisturbed one, and
    every map once."""
    words = ["evaluate", "--model", str(zero2), "--data", job.manifest, "scorer.name=inversion", "scorer.steps=40"]
    whole, killed = job.root / "results-whole", job.root / "results-killed"
    fmad(*words, *outputs_at(whole), "--processes", "1")
    assert not (whole / "partial").exists()
    command = [sys.executable, "-m", "fmad_dist.cli", *words, *outputs_at(killed), "--save-every", "0"]
    process = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not list(killed.glob("partial/rank-00001-*.part")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks_of(process.pid)[0].kill()
    assert process.wait(LAUNCH_SECONDS) == 1
    assert not (killed / "results.json").exists()
    assert not (killed / "maps" / "maps.json").exists()
    again = fmad(*words, *outputs_at(killed), "--processes", "3")
    before = re.search(r"(\d+) images were scored before", again.stdout)
    assert before is not None
    assert 8 <= int(before[1]) < 27
    assert files(killed) == files(whole)
    speed = json.loads((killed / "speed.json").read_text())
    assert speed["num_images"] == 27 - int(before[1])  # the others were scored by processes that are dead
    assert not (killed / "partial").exists()
    check_maps(whole, killed, zero2)


def outputs_at(out: Path) -> list[str]:
    return ["--out", str(out), "--maps", str(out / "maps"), "--tiff", str(out / "tiff")]


def check_maps(whole: Path, killed: Path, model: Path) -> None:
    """The same files, which hold the maps of the detector's own call."""
    for folder, count in (("maps", 5), ("tiff", 27)):
        one, other = (
            {path.relative_to(out): path.read_bytes() for path in (out / folder).rglob("*.*")}
            for out in (whole, killed)
        )
        assert len(one) == count
        assert one == other
    urls = sorted(str(path) for path in (killed / "maps").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    ids = [sample["json"]["sample_id"] for sample in samples]
    with open(killed / "scores.csv") as file:
        assert sorted(ids) == [row["sample_id"] for row in csv.DictReader(file)]
    detector = Detector.load(model).with_scorer(InversionConfig(steps=40))
    mixture = Mixture.load([str(model.parent.parent / "data")])
    (batch,) = LabelledImages(mixture, detector.image_size, SIDE).read(shards_of_test_split(mixture)[2])
    found = detector(batch.images)
    for row, score, anomaly_map in zip(batch.rows, found.scores.tolist(), found.maps.numpy(), strict=True):
        sample = samples[ids.index(mixture.sample_id(row))]
        assert sample["json"]["score"] == pytest.approx(score, rel=1e-4)
        np.testing.assert_allclose(sample["map.npy"], anomaly_map, rtol=1e-3)
        tiff = tifffile.imread(killed / "tiff" / f"{mixture.sample_id(row)}.tiff")
        np.testing.assert_allclose(tiff, anomaly_map, rtol=1e-4)


def check_registry(registry: str, results: dict) -> None:
    import mlflow

    client = mlflow.MlflowClient(registry, registry)
    version = client.get_model_version_by_alias("fmad", "candidate")
    assert float(version.tags["fmad.test_image_auroc"]) == pytest.approx(results["mean"]["image_auroc"], abs=1e-6)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "6"
    assert [m.step for m in client.get_metric_history(version.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    folder = f"evaluation/version-{version.version}"
    logged = {file.path.removeprefix(f"{folder}/") for file in client.list_artifacts(version.run_id, folder)}
    assert logged == {*TABLES, "report.html", "speed.json"}


def test_prediction_gives_the_scores_of_the_evaluation(job: Job, zero2: Path, registry: str) -> None:
    """Two processes whose shards a damaged image makes uneven; one process gives the same bytes."""
    source, out = job.root / "predicted", job.root / "predictions"
    for path in sorted((job.root / "images").glob("*/test/*/*.png")):
        Store(source).write(f"{path.parts[-4]}/{path.parts[-2]}/{path.name}", path.read_bytes())
    (source / "bar" / "cut.png").write_bytes(b"")
    model = ["--model", "models:/fmad@candidate", "--tracking-uri", registry]
    done = fmad("predict", *model, "--source", str(source), "--out", str(out), "--processes", "2", check=False)
    assert done.returncode == 2
    assert f"error: 1 images could not be scored, first: {source}/bar/cut.png" in done.stderr.splitlines()[-1]
    predicted = {
        row["image"].removesuffix(".png"): row for row in read_parquet((out / TABLE_NAME).read_bytes()).to_pylist()
    }
    assert predicted.pop("bar/cut")["decision"] == "unreadable"
    with open(job.root / "results-1" / "scores.csv") as file:
        evaluated = {row["sample_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(predicted) == len(evaluated) == 27
    for name, row in predicted.items():
        class_name, _, rest = name.partition("/")
        assert row["score"] == pytest.approx(evaluated[f"tiny/{class_name}/test/{rest}"], rel=1e-4)
        assert row["class"] == f"tiny/{class_name}"
        assert (row["decision"] == "anomalous") == (row["score"] > row["threshold"])
    run_prediction(PredictionOptions(str(zero2), (str(source),), str(job.root / "alone")), World())
    for path in out.rglob("*.p*"):
        assert path.read_bytes() == (job.root / "alone" / path.relative_to(out)).read_bytes()
    assert len(list((out / "maps").rglob("*.png"))) == len(list((out / "overlays").rglob("*.png"))) == 27
