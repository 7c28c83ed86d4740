"""Registered versions of the detector: an MLflow pyfunc model whose files are the detector folder itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.config_files import parse_config
from fmad_dist.errors import UserError, first_line
from fmad_dist.storage.scratch import passing_folder
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun, connect, tracking_uri

# what run_evaluation writes; named here because its modules import torch
EVALUATION_FILES = (
    "results.json",
    "results.csv",
    "scores.csv",
    "results.md",
    "results.tex",
    "speed.json",
    "report.html",
)

DIGEST_TAG = "fmad.detector_sha256"


def register_detector(detector: Path, config: RunConfig, run_id: str) -> str:
    """Log the detector folder to the run as a pyfunc model, register it and give it the alias `candidate`.

    Returns the version. Raises:
        UserError: the server refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    name = config.tracking.model_name
    try:
        client = connect(tracking_uri(config))
        version = _log_model(detector, name, run_id)
        client.set_registered_model_alias(name, "candidate", version)
        spec = json.loads((detector / "detector.json").read_text())
        for key in ("manifest_digests", "licences", "class_names"):
            client.set_model_version_tag(name, version, f"fmad.{key}", json.dumps(spec[key])[:4900])
    except (MlflowException, OSError) as error:
        raise UserError(f"{detector}: the registry did not take the model ({first_line(error)}).") from None
    return version


def register_run(run: Path) -> str:
    """Register the detector of a finished run again or for the first time; returns its models:/ URI.

    Raises:
        UserError: the run is not finished, or the server refuses.
    """
    if not (run / "detector" / "detector.json").is_file():
        raise UserError(f"{run}: no detector in it; give the directory of a finished training run.")
    tracked = tracked_run(run)
    tracked.sync()
    return f"models:/{tracked.config.tracking.model_name}/{tracked.register(run / 'detector')}"


def sync_run(run: Path) -> str:
    """Give MLflow what it has missed of a run: metrics, how it ended, the detector; returns a sentence about it.

    Raises:
        UserError: this is no run directory, or the server cannot be used.
    """
    tracked = tracked_run(run)
    count = tracked.sync()
    said = f"{count} records sent, MLflow run {tracked.run_id} has all of them"
    if (run / "detector" / "detector.json").is_file() and not (run / "registered.json").exists():
        version = tracked.register(run / "detector")
        said += f"; registered models:/{tracked.config.tracking.model_name}/{version} (alias candidate)"
    return said


def tracked_run(run: Path) -> TrackedRun:
    """The tracking of a run directory, switched on. Raises UserError when it is none."""
    import yaml

    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run}: no config.yaml in it; give the directory of a training run.")
    config = parse_config(yaml.safe_load(path.read_text()), source=str(path))
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"mlflow": True})})
    return TrackedRun(config, RunRecord(run, is_main=True))


def use_registry(uri: str | None) -> None:
    """Point MLflow at `uri`, or at the sqlite file beside local runs when there is no other word."""
    local = Path("runs/mlflow.db").resolve()
    if uri is None and local.exists():
        uri = f"sqlite:///{local}"
    if uri is not None:
        connect(uri)


def named_version(model: str) -> str:
    """What a report calls a model: an alias moves on, so the version and the run behind it are named too.

    Raises:
        UserError: the registry has no such version, or cannot be reached.
    """
    if not model.startswith("models:/"):
        return model
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        version = _version_of(mlflow.MlflowClient(), model)
    except (MlflowException, OSError) as error:
        raise _not_there(model, error) from None
    exact = f"models:/{version.name}/{version.version}"
    return exact + (f", now {model}" if model != exact else "") + f", MLflow run {version.run_id}"


def log_evaluation(model: str, results: Path) -> None:
    """Copy metrics and files of an evaluated registry version to its run and tag the version.

    Does nothing for detectors that are not in a registry.
    """
    if not model.startswith("models:/"):
        return
    import mlflow
    from mlflow.exceptions import MlflowException

    body = json.loads((results / "results.json").read_text())
    try:
        client = mlflow.MlflowClient()
        version = _version_of(client, model)
        means = {f"test_{name}": value for name, value in body["mean"].items() if isinstance(value, float)}
        for name, value in means.items():
            client.log_metric(version.run_id, name, value)
            client.set_model_version_tag(version.name, version.version, f"fmad.{name}", f"{value:.6f}")
        client.set_model_version_tag(version.name, version.version, "fmad.protocol", json.dumps(body["protocol"]))
        for name in EVALUATION_FILES:
            client.log_artifact(version.run_id, str(results / name), artifact_path="evaluation")
    except (MlflowException, OSError) as error:
        raise UserError(f"{results}: complete, but MLflow did not take a copy ({first_line(error)}).") from None


def _version_of(client: Any, model: str) -> Any:
    """The model version behind models:/NAME/VERSION or models:/NAME@ALIAS."""
    name = model.removeprefix("models:/")
    if "@" in name:
        return client.get_model_version_by_alias(*name.split("@", 1))
    return client.get_model_version(*name.split("/", 1))


def download_model(uri: str) -> Path:
    """The files of a registered model as a local folder.

    Raises:
        UserError: the registry has no such model or version, or cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    target = passing_folder("fmad-model-")
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))
    except (MlflowException, OSError) as error:
        raise _not_there(uri, error) from None


def registered_digest(uri: str) -> tuple[str, str | None]:
    """The URI with the version that an alias means now, and the SHA-256 that its `detector.json` had when it was
    registered; None for versions without that tag and for models that are no registered version.

    Raises:
        UserError: the registry has no such model or version, or cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if not uri.startswith("models:"):
        return uri, None
    client = mlflow.MlflowClient()
    try:
        found = get_model_name_and_version(client, uri)
        if len(found) == 1:  # models:/m-..., a logged model
            return uri, None
        name, version = found
        return f"models:/{name}/{version}", client.get_model_version(name, version).tags.get(DIGEST_TAG)
    except (MlflowException, OSError) as error:
        raise _not_there(uri, error) from None


def _not_there(uri: str, error: Exception) -> UserError:
    import mlflow

    return UserError(
        f"{uri}: not in the registry at {mlflow.get_registry_uri()} ({first_line(error)}); check the name, the alias "
        "and MLFLOW_TRACKING_URI (or --tracking-uri)."
    )


def _log_model(detector: Path, name: str, run_id: str) -> str:
    import mlflow
    from mlflow.utils.logging_utils import disable_logging, enable_logging

    from fmad_dist.serving.signature import input_example, signature

    with mlflow.start_run(run_id=run_id):
        logged: Any = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"detector": str(detector)},
            signature=signature(),
            input_example=input_example(),
            pip_requirements=["fmad-dist"],
        )
    digest = hashlib.sha256((detector / "detector.json").read_bytes()).hexdigest()
    disable_logging()  # it would tell the terminal what `register_detector` returns
    try:
        return str(mlflow.register_model(logged.model_uri, name, tags={DIGEST_TAG: digest}).version)
    finally:
        enable_logging()
