"""How good a version is: results of its evaluations, kept with its run and bound to its weights by digests."""

import csv
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.results import EVALUATION_FILES
from fmad_dist.registry.gate import Evidence
from fmad_dist.registry.versions import PREFIX, client_at, registry_client, uri_of, version_of
from fmad_dist.tracking.runs import NOTE_NAME
from fmad_dist.tracking.uploader import warn

EVALUATION_TAG = "fmad.evaluation"
BOUND_FILES = ("results.json", "scores.csv")  # what decisions are made from


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation of a registered version, as its tag says."""

    artifacts: str  # folder inside the artifacts of the version's run
    digests: Mapping[str, str]  # SHA-256 of BOUND_FILES
    weights_sha256: str
    tested_on: Mapping[str, str]  # dataset -> digest of its manifest
    manifests: Sequence[str]  # where these datasets were

    def to_tag(self) -> str:
        return json.dumps(asdict(self))


def log_evaluation(
    model: str, results: Path, weights_sha256: str, tested_on: Mapping[str, str], manifests: Sequence[str]
) -> None:
    """Copy the evaluation of a registered model, or of a run whose detector is registered, to the version's run and say
    so in the version's tags.

    Does nothing for detectors that are not in a registry. Raises:
        UserError: the server refuses; the local results are complete.
    """
    from mlflow.exceptions import MlflowException

    uri = registered_as(model, weights_sha256)
    if uri is None:
        return
    body = json.loads((results / "results.json").read_text())
    client = registry_client()
    version = version_of(client, uri)
    folder = f"evaluation/version-{version.version}"
    digests = {name: hashlib.sha256((results / name).read_bytes()).hexdigest() for name in BOUND_FILES}
    evaluated = Evaluated(folder, digests, weights_sha256, dict(tested_on), list(manifests))
    means = {f"test_{name}": value for name, value in body["mean"].items() if isinstance(value, float)}
    try:
        for name in EVALUATION_FILES:
            client.log_artifact(version.run_id, str(results / name), artifact_path=folder)
        for name, value in means.items():
            client.log_metric(version.run_id, name, value)
        tags = {f"fmad.{name}": f"{value:.6f}" for name, value in means.items()}
        tags["fmad.protocol"] = body["protocol_title"]
        tags[EVALUATION_TAG] = evaluated.to_tag()  # last: it says that all the others are there
        for name, text in tags.items():
            client.set_model_version_tag(version.name, version.version, name, text)
    except (MlflowException, OSError) as error:
        raise UserError(f"{results}: complete, but MLflow did not take a copy ({first_line(error)}).") from None


def registered_as(model: str, weights_sha256: str) -> str | None:
    """The models:/ URI of a registered model or of the version that a run directory was registered as; None for other
    detectors, and where the registered files have other weights or the run's server is away, which is said."""
    note, tracking = Path(model) / "registered.json", Path(model) / NOTE_NAME
    if model.startswith(PREFIX) or not (note.is_file() and tracking.is_file()):
        return model if model.startswith(PREFIX) else None
    noted, server = json.loads(note.read_text()), json.loads(tracking.read_text())["uri"]
    uri = f"{PREFIX}{noted['name']}/{noted['version']}"
    try:
        version = version_of(client_at(server), uri)
    except UserError as error:
        warn(f"{error} Its evaluation is in the results only.")
        return None
    return uri if version.tags.get("fmad.weights_sha256") == weights_sha256 else None


def evaluation_of(version: Any) -> Evaluated | None:
    """What the version's tag says, None if it was never evaluated."""
    text = version.tags.get(EVALUATION_TAG)
    return None if text is None else Evaluated(**json.loads(text))


def read_evidence(client: Any, version: Any, spec: Any = None) -> tuple[Evidence, dict[str, float]]:
    """What the gate needs to know of a version, and its image scores by sample id. `spec` is the DetectorSpec of the
    registered files, where they were downloaded.

    Raises:
        UserError: the registry cannot be read.
    """
    names = tuple(spec.class_names) if spec else ()
    loose = () if spec is None else _without_threshold(spec)
    evaluated = evaluation_of(version)
    if evaluated is None:
        return Evidence(version.version, None, class_names=names, uncalibrated=loose), {}
    with tempfile.TemporaryDirectory(prefix="fmad-evidence-") as scratch:
        files = {name: _fetch(client, version, f"{evaluated.artifacts}/{name}", scratch) for name in BOUND_FILES}
    problem = ""
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != evaluated.digests[name]:
            problem = f"{name} was changed after the evaluation; evaluate the version again"
    if spec is not None and spec.weights_sha256 != evaluated.weights_sha256:
        problem = "of other weights than those that are registered; evaluate the version again"
    results = None if problem else json.loads(files["results.json"])
    evidence = Evidence(version.version, results, dict(evaluated.tested_on), names, loose, problem)
    rows = csv.DictReader(files["scores.csv"].decode().splitlines())
    return evidence, {} if problem else {row["sample_id"]: float(row["score"]) for row in rows}


def _without_threshold(spec: Any) -> tuple[str, ...]:
    if spec.calibration is None:
        return tuple(spec.class_names)
    pairs = zip(spec.class_names, spec.calibration.thresholds, strict=True)
    return tuple(name for name, threshold in pairs if threshold == float("inf"))


def _fetch(client: Any, version: Any, path: str, scratch: str) -> bytes:
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(version.run_id, path, scratch)).read_bytes()
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri_of(version)}: its evaluation cannot be read from run {version.run_id} ({first_line(error)}); "
            "evaluate it again."
        ) from None
