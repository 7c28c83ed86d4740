"""What the gate decides from: results of evaluations of a version, and whether its registered files score like them.

Results are kept with the version's run and bound to its weights by digests. For parity, images of the evaluation are
scored again through MLflow.
"""

import base64
import csv
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.images.codec import png
from fmad_dist.registry.gate import Evidence, Parity
from fmad_dist.report.result_files import EVALUATION_FILES
from fmad_dist.storage.store import from_anywhere
from fmad_dist.tracking.database import failures
from fmad_dist.tracking.runs import NOTE_NAME, REGISTERED_NAME
from fmad_dist.tracking.server import PREFIX, answered, client_at, full_uri, registry_client, uri_of, version_of

EVALUATION_TAG = "fmad.evaluation"
BOUND_FILES = ("results.json", "scores.csv")  # what decisions are made from


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The tag of a version that says where its evaluation is and what it was made from."""

    artifacts: str  # folder inside the artifacts of the version's run
    digests: Mapping[str, str]  # SHA-256 of BOUND_FILES
    weights_sha256: str
    tested_on: Mapping[str, str]  # dataset -> digest of its manifest
    manifests: Sequence[str]  # where these datasets were


def log_evaluation(
    model: str, results: Path, weights_sha256: str, tested_on: Mapping[str, str], manifests: Sequence[str]
) -> None:
    """Copy the evaluation of a registered model, or of a run whose detector is registered, to the version's run and
    note it in the version's tags. Does nothing for detectors that are not in a registry.

    Raises:
        UserError: the server refuses; the local results are complete.
    """
    uri = registered_as(model, weights_sha256)
    if uri is None:
        return
    body = json.loads((results / "results.json").read_text())
    client = registry_client()
    version = version_of(client, uri)
    folder = f"evaluation/version-{version.version}"
    digests = {name: hashlib.sha256((results / name).read_bytes()).hexdigest() for name in BOUND_FILES}
    where = list(map(from_anywhere, manifests))  # who promotes may be elsewhere
    evaluated = Evaluated(folder, digests, weights_sha256, dict(tested_on), where)
    means = {f"test_{name}": value for name, value in body["mean"].items() if isinstance(value, float)}
    try:
        for name in EVALUATION_FILES:
            client.log_artifact(version.run_id, str(results / name), artifact_path=folder)
        for name, value in means.items():
            client.log_metric(version.run_id, name, value)
        tags = {f"fmad.{name}": f"{value:.6f}" for name, value in means.items()}
        tags["fmad.protocol"] = body["protocol_title"]
        tags[EVALUATION_TAG] = json.dumps(asdict(evaluated))  # last: it says that all the others are there
        for name, text in tags.items():
            client.set_model_version_tag(version.name, version.version, name, text)
    except failures() as error:
        raise UserError(f"{results}: complete, but MLflow did not take a copy ({first_line(error)}).") from None


def registered_as(model: str, weights_sha256: str) -> str | None:
    """Return the models:/ URI of a registered model, or of the version that a run directory was registered as; None for
    other detectors, for a version of other weights, and, with a warning, where the run's server cannot be reached."""
    note, tracking = Path(model) / REGISTERED_NAME, Path(model) / NOTE_NAME
    if model.startswith(PREFIX) or not (note.is_file() and tracking.is_file()):
        return model if model.startswith(PREFIX) else None
    noted, server = json.loads(note.read_text()), json.loads(tracking.read_text())["uri"]
    uri = f"{PREFIX}{noted['name']}/{noted['version']}"
    try:
        version = version_of(client_at(full_uri(server)), uri)
    except UserError as error:
        warn(f"{error} Its evaluation is in the results only.")
        return None
    return uri if version.tags.get("fmad.weights_sha256") == weights_sha256 else None


def evaluation_of(version: Any) -> Evaluated | None:
    """Return the content of the version's tag, None if it was never evaluated."""
    text = version.tags.get(EVALUATION_TAG)
    return None if text is None else Evaluated(**json.loads(text))


def read_evidence(client: Any, version: Any, spec: Any = None) -> tuple[Evidence, dict[str, float]]:
    """Return what the gate needs to know of a version, and its image scores by sample id. `spec` is the DetectorSpec of
    the registered files, where they were downloaded.

    Raises:
        UserError: the registry cannot be read.
    """
    names = tuple(spec.class_names) if spec else ()
    uncalibrated = _without_threshold(spec) if spec else ()
    evaluated = evaluation_of(version)
    if evaluated is None:
        return Evidence(version.version, None, class_names=names, uncalibrated=uncalibrated), {}
    with tempfile.TemporaryDirectory(prefix="fmad-evidence-") as scratch:
        files = {name: _fetch(client, version, f"{evaluated.artifacts}/{name}", scratch) for name in BOUND_FILES}
    problem = ""
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != evaluated.digests[name]:
            problem = f"{name} was changed after the evaluation; evaluate the version again"
    if spec is not None and spec.weights_sha256 != evaluated.weights_sha256:
        problem = "of other weights than those that are registered; evaluate the version again"
    results = None if problem else json.loads(files["results.json"])
    evidence = Evidence(version.version, results, dict(evaluated.tested_on), names, uncalibrated, problem)
    rows = csv.DictReader(files["scores.csv"].decode().splitlines())
    return evidence, {} if problem else {row["sample_id"]: float(row["score"]) for row in rows}


def _without_threshold(spec: Any) -> tuple[str, ...]:
    if spec.calibration is None:
        return tuple(spec.class_names)
    pairs = zip(spec.class_names, spec.calibration.thresholds, strict=True)
    return tuple(name for name, threshold in pairs if threshold == float("inf"))


def _fetch(client: Any, version: Any, path: str, scratch: str) -> bytes:
    try:
        return Path(client.download_artifacts(version.run_id, path, scratch)).read_bytes()
    except failures() as error:
        raise UserError(
            f"{uri_of(version)}: its evaluation cannot be read from run {version.run_id} ({first_line(error)}); "
            "evaluate it again."
        ) from None


def measure_parity(
    version: Any, folder: Path, spec: Any, evaluated: Evaluated, scores: Mapping[str, float], num_images: int
) -> Parity:
    """Score `num_images` of the evaluation, evenly spaced among all, with the model that `mlflow.pyfunc` loads from
    `folder`, the checked download of the version.

    Raises:
        UserError: the registry or the test data cannot be read, the data changed, or another fmad registered it.
    """
    import mlflow

    chosen = spread(sorted(scores), num_images)
    images = _read(evaluated, spec.features.image_size, chosen)
    try:
        with answered(uri_of(version)):
            model = mlflow.pyfunc.load_model(str(folder))
    except ImportError as error:  # the code that a version holds is of the fmad that registered it
        raise UserError(
            f"{uri_of(version)}: cannot be loaded by this fmad ({error}); register its run again: "
            "fmad registry register --run RUN."
        ) from None
    table = model.predict(_request(images))
    found = np.array(table["score"], dtype=np.float64)
    wanted = np.array([scores[name] for name in chosen])
    limits = np.array(table["threshold"], dtype=np.float64)
    flipped = int(np.sum((wanted > limits) != np.array(table["anomalous"], dtype=bool)))
    return Parity(len(chosen), float(np.max(np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-6))), flipped)


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return at most `count` names at equal distances; of a sorted list they are of all classes in turn."""
    positions = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [names[position] for position in positions]


def _read(evaluated: Evaluated, image_size: int, chosen: Sequence[str]) -> list[np.ndarray]:
    """Read the images with the chosen sample ids, uint8 [S, S, 3] each."""
    from fmad_dist.stream.image_source import ImageSource
    from fmad_dist.stream.mixture import Mixture

    for url in evaluated.manifests:
        if "://" not in url and not Path(url).exists():
            raise UserError(
                f"{url}: the test data of the evaluation is not there, seen from {Path.cwd()}; promote where the "
                "version was evaluated, or evaluate it again."
            )
    mixture = Mixture.load(evaluated.manifests)
    for name, digest in mixture.digests.items():
        if evaluated.tested_on.get(name) != digest:
            raise UserError(f"{name}: changed after the evaluation; evaluate the version again.")
    rows = mixture.rows("test")
    index_of = dict(zip(mixture.sample_ids(rows), rows.tolist(), strict=True))
    source = ImageSource(mixture, image_size)
    return [source.read(index_of[name]).permute(1, 2, 0).numpy() for name in chosen]


def _request(images: Sequence[np.ndarray]) -> Any:
    """Return the request that a client would send for these images, as PNGs, which lose nothing."""
    import pandas as pd
    from PIL import Image

    return pd.DataFrame({"image": [base64.b64encode(png(Image.fromarray(pixels))).decode() for pixels in images]})
