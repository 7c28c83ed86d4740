"""Promotion, refusal and rollback in a real MLflow registry on sqlite. The scores are real, the metrics are not: they
say which version is the better one."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig, TrackingConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.evaluate import EvaluationOptions, run_evaluation
from fmad_dist.registry.evidence import log_evaluation
from fmad_dist.registry.gate import Gate
from fmad_dist.registry.promotion import promote, rollback
from fmad_dist.registry.register import register_tracked
from fmad_dist.registry.tables import show_version
from fmad_dist.stream.mixture import Mixture
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun
from fmad_dist.tracking.server import connect, tracking_uri

pytestmark = pytest.mark.slow
CLASSES = ("tiny/bolt", "tiny/nut", "tiny/washer")
GATE = Gate(thresholds={"image_auroc": 0.5}, mean_drop={"image_auroc": 0.0}, class_drop={"image_auroc": 0.05})


@dataclass
class Registry:
    """A registry, a real evaluation, and a way to make versions that are as good as wanted."""

    config: RunConfig
    tracked: TrackedRun
    client: Any
    evaluated: Path
    url: str
    scratch: Path

    def version(self, name: str, image_auroc: float | None, nut: float | None = None, score: str = "") -> str:
        """Register a version of the model `name`; evaluated with these metrics, or not at all."""
        self.tracked.config = self.config.model_copy(
            update={"tracking": self.config.tracking.model_copy(update={"model_name": name})}
        )
        uri = register_tracked(self.tracked, self.config.run_dir / "detector")
        if image_auroc is not None:
            relative = os.path.relpath(self.url, self.scratch)
            with chdir(self.scratch):  # whoever promotes is in another folder
                log_evaluation(uri, self._results(image_auroc, nut, score), self.weights, self.digests, [relative])
        return uri

    def _results(self, image_auroc: float, nut: float | None, score: str) -> Path:
        folder = self.scratch / "results"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.evaluated, folder)
        body = json.loads((folder / "results.json").read_text())
        for values in (body["mean"], *body["classes"].values()):
            values["image_auroc"] = image_auroc
        body["classes"]["tiny/nut"]["image_auroc"] = image_auroc if nut is None else nut
        (folder / "results.json").write_text(json.dumps(body))
        if score:
            lines = (folder / "scores.csv").read_text().splitlines()
            cells = lines[1].split(",")
            cells[4] = score
            (folder / "scores.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:], ""]))
        return folder

    @property
    def weights(self) -> str:
        return str(json.loads((self.config.run_dir / "detector" / "detector.json").read_text())["weights_sha256"])

    @property
    def digests(self) -> dict[str, str]:
        return Mixture.load([self.url]).digests

    def alias(self, name: str, alias: str) -> str | None:
        found = self.client.get_registered_model(name).aliases.get(alias)
        return None if found is None else str(found)


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, make_detector: Callable[..., Detector], tiny_url: str
) -> Iterator[Registry]:
    import mlflow

    root = tmp_path_factory.mktemp("registry")
    config = RunConfig(name="first", output=str(root / "runs"), tracking=TrackingConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
        tracked.start(None, {"mlflow.source.git.commit": "abc123"})
        licences = {"tiny": "CC BY-NC-SA 4.0"}
        digests = Mixture.load([tiny_url]).digests
        detector = make_detector((1.0, 2.0, 3.0), class_names=CLASSES, manifest_digests=digests, licences=licences)
        detector.save(config.run_dir / "detector")
        options = EvaluationOptions(str(config.run_dir / "detector"), (tiny_url,), str(root / "evaluated"), "first")
        assert run_evaluation(options, World()) is not None
        client = connect(tracking_uri(config))
        yield Registry(config, tracked, client, root / "evaluated", tiny_url, root)
        tracked.close()
    mlflow.set_tracking_uri("")
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def fmad(registry: Registry, *words: str) -> Result:
    from fmad_dist.cli import app

    return CliRunner().invoke(app, [*words, "--tracking-uri", tracking_uri(registry.config)])


def test_the_gate_decides_who_is_champion(registry: Registry, tmp_path: Path) -> None:
    first, worse, better = (registry.version("gated", value) for value in (0.8, 0.7, 0.9))
    unknown = registry.version("gated", None)
    assert promote(first, GATE).accepted
    assert registry.alias("gated", "champion") == "1"

    decision = promote(worse, GATE)
    assert not decision.accepted
    assert decision.reasons == [
        "image_auroc against version 1: 0.7000 after 0.8000",
        "image_auroc of no class worse by more than 0.05: " + "; ".join(f"{n} 0.7000 after 0.8000" for n in CLASSES),
    ]
    assert registry.alias("gated", "champion") == "1"
    kept = json.loads(registry.client.get_model_version("gated", "2").tags["fmad.decision"])
    assert (kept["accepted"], kept["against"]) == (False, "1")

    assert "fmad evaluate" in promote(unknown, GATE).reasons[0]
    assert promote(better, GATE).accepted
    assert (registry.alias("gated", "champion"), registry.alias("gated", "previous")) == ("3", "1")
    with pytest.raises(UserError, match="champion already"):
        promote(better, GATE)

    shown = fmad(registry, "registry", "show", "models:/gated@champion").stdout
    for text in (
        "models:/gated/3  (champion)",
        "commit abc123",
        registry.digests["tiny"],
        registry.weights,
        "accepted",
    ):
        assert text in shown
    assert "trained on data for non-commercial use only: tiny (CC BY-NC-SA 4.0)" in shown
    assert '"global_batch": 16' in shown  # the whole configuration
    listed = fmad(registry, "registry", "list", "gated").stdout.splitlines()
    assert [line for line in listed if "gated/3" in line and "champion" in line and "0.9000" in line]
    compared = fmad(registry, "registry", "compare", first, better).stdout
    assert "+0.1000" in compared

    assert rollback("gated") == ("3", "1")
    assert (registry.alias("gated", "champion"), registry.alias("gated", "previous")) == ("1", None)
    with pytest.raises(UserError, match="no way back"):
        rollback("gated")
    refused = fmad(registry, "registry", "promote", worse)
    assert refused.exit_code == 1
    assert "the champion stays" in refused.stdout


def test_results_that_do_not_fit_the_files_are_refused(registry: Registry) -> None:
    other_scores = registry.version("odd", 0.9, score="123.0")
    (reason,) = promote(other_scores, GATE).reasons
    assert reason.startswith("registered files score as evaluated")

    changed = registry.version("odd", 0.9)
    run = registry.client.get_model_version("odd", "2").run_id
    other = registry._results(1.0, None, "") / "results.json"
    registry.client.log_artifact(run, str(other), artifact_path="evaluation/version-2")
    assert "results.json was changed after the evaluation" in promote(changed, GATE).reasons[0]

    other_weights = registry.version("odd", None)
    log_evaluation(other_weights, registry._results(0.9, None, ""), "0" * 64, registry.digests, [registry.url])
    assert "of other weights" in promote(other_weights, GATE).reasons[0]
    assert registry.alias("odd", "champion") is None


def test_of_two_promotions_at_once_one_is_refused(registry: Registry) -> None:
    uris = [registry.version("raced", 0.9) for _ in range(2)]
    together = threading.Barrier(2)
    ends: list[str] = []

    def run(uri: str) -> None:
        together.wait()
        try:
            ends.append("promoted" if promote(uri, GATE).accepted else "refused")
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=run, args=(uri,)) for uri in uris]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (message,) = [text for text in ends if text != "promoted"]
    assert "another promotion is under way" in message
    assert registry.alias("raced", "champion") in ("1", "2")
    names = [model.name for model in registry.client.search_registered_models()]
    assert not [name for name in names if "lock" in name]  # the lock is gone

    registry.client.create_registered_model("raced.promotion-lock")  # of a process that died
    late = registry.version("raced", 0.95)
    with pytest.raises(UserError, match="--break-lock"):
        promote(late, GATE)
    assert promote(late, GATE, break_lock=True).accepted


def test_code_that_was_changed_in_the_artifact_store_never_runs(registry: Registry, tmp_path: Path) -> None:
    """Whoever may write there but not to the registry gets no code into a promotion, and no files into any command."""
    uri = registry.version("attacked", 0.9)
    ran = tmp_path / "ran"
    hostile = f"open({str(ran)!r}, 'w').close()\n"
    stored = Path(registry.client.get_model_version_download_uri("attacked", "1").removeprefix("file://"))
    changes = {
        "pyfunc.py": hostile + (stored / "pyfunc.py").read_text(),
        "MLmodel": (stored / "MLmodel").read_text().replace("mlflow.pyfunc.loaders.code_model", "hostile"),
        "hostile.py": hostile,  # a file more
        "__pycache__/pyfunc.cpython-311.pyc": hostile,
        "requirements.txt": "hostile\n",
        "artifacts/detector/lineage.json": "{}",
    }
    for name, text in changes.items():
        before = (stored / name).read_text() if (stored / name).exists() else None
        (stored / name).parent.mkdir(exist_ok=True)
        (stored / name).write_text(text)
        for read in (lambda: promote(uri, GATE), lambda: Detector.load(uri), lambda: list(show_version(uri))):
            with pytest.raises(UserError, match=rf"attacked/1: {name} not what was registered, .* do not use"):
                read()
        (stored / name).unlink() if before is None else (stored / name).write_text(before)
    assert not ran.exists()
    assert registry.alias("attacked", "champion") is None
    assert promote(uri, GATE).accepted  # the files are the registered ones again


def test_a_version_without_digests_is_not_promoted(registry: Registry) -> None:
    uri = registry.version("undigested", 0.9)
    registry.client.delete_model_version_tag("undigested", "1", "fmad.files_sha256")
    with pytest.raises(
        UserError, match=r"undigested/1: the registry has no digests of its files.*register its run again"
    ):
        promote(uri, GATE)
