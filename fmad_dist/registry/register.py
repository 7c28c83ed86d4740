"""Registered versions of the detector: an MLflow pyfunc model whose files are the detector folder itself."""

import hashlib
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.config_files import parse_config
from fmad_dist.errors import UserError, first_line
from fmad_dist.registry.lineage import lineage_tags, write_lineage
from fmad_dist.registry.versions import DIGEST_TAG
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.runs import TrackedRun, connect, tracking_uri


def register_detector(detector: Path, config: RunConfig, run_id: str) -> str:
    """Log the detector folder to the run as a pyfunc model, register it and give it the alias `candidate`.

    Returns the version. Raises:
        UserError: the server refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    name = config.tracking.model_name
    try:
        client = connect(tracking_uri(config))
        lineage = write_lineage(detector, config, run_id, client.get_run(run_id).data.tags)
        version = _log_model(detector, name, run_id)
        digest = hashlib.sha256((detector / "detector.json").read_bytes()).hexdigest()
        for key, value in (lineage_tags(lineage) | {DIGEST_TAG: digest}).items():
            client.set_model_version_tag(name, version, key, value)
        client.set_registered_model_alias(name, "candidate", version)
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
        UserError: this is no run directory, it has not trained, or the server cannot be used.
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


def _log_model(detector: Path, name: str, run_id: str) -> str:
    import mlflow
    from mlflow.utils.autologging_utils.logging_and_warnings import MlflowEventsAndWarningsBehaviorGlobally

    from fmad_dist.serving.signature import input_example, signature

    # What it says about each step is not what the user asked for.
    silence = MlflowEventsAndWarningsBehaviorGlobally(
        disable_event_logs=True, disable_warnings=True, reroute_warnings=False
    )
    with silence, mlflow.start_run(run_id=run_id):
        logged: Any = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(Path(__file__).parents[1] / "serving" / "pyfunc.py"),
            artifacts={"detector": str(detector)},
            signature=signature(),
            input_example=input_example(),
            pip_requirements=["fmad-dist"],
            registered_model_name=name,
        )
    return str(logged.registered_model_version)
