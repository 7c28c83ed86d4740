"""Register a detector as a version: an MLflow pyfunc model whose files are those of the detector's folder.

Beside them is lineage.json, the origin of the version: data, code and configuration.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.version import code_version
from fmad_dist.config.files import load_config
from fmad_dist.config.run import RunConfig
from fmad_dist.storage import Store
from fmad_dist.storage.store import from_anywhere
from fmad_dist.tracking.database import failures
from fmad_dist.tracking.record import RunRecord
from fmad_dist.tracking.registered_files import FILES_TAG, file_digests
from fmad_dist.tracking.runs import MAX_TAG, REGISTERED_NAME, TrackedRun
from fmad_dist.tracking.server import connect, tracking_uri

LINEAGE_NAME = "lineage.json"
# Entries of the lineage that are tags too, for lists and searches.
TAGS = ("train_step", "weights_sha256", "backbone", "backbone_digest", "code", "licence_note", "data")
_NOT_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "non commercial", "research only")


def register_tracked(tracked: TrackedRun, detector: Path) -> str:
    """Log a detector folder to the tracked run as a pyfunc model, register it as a new version with the alias
    `candidate`, and note it in `registered.json`; returns its models:/ URI.

    Raises:
        UserError: the server refuses or cannot be reached.
    """
    config, run_id = tracked.config, str(tracked.run_id)
    name = config.tracking.model_name
    try:
        client = connect(tracking_uri(config))
        lineage = write_lineage(detector, config, run_id, client.get_run(run_id).data.tags)
        version = _log_model(client, detector, name, run_id, lineage_tags(lineage))
        client.set_registered_model_alias(name, "candidate", version)
    except failures() as error:
        raise UserError(f"{detector}: the registry did not take the model ({first_line(error)}).") from None
    tracked.record.write(REGISTERED_NAME, json.dumps({"name": name, "version": version}))
    return f"models:/{name}/{version}"


def register_trained(tracked: TrackedRun, detector: Path) -> None:
    """Register the detector of a training that has just ended, if it is tracked; where the server refuses, warn and
    name the command for later."""
    if not tracked.enabled:
        return
    try:
        print(f"registered {register_tracked(tracked, detector)} (alias candidate)", flush=True)
    except UserError as error:
        warn(f"{error} Later: fmad sync {detector.parent}")


def register_run(run: Path, detector: Path | None = None) -> str:
    """Register the detector of a finished run, again if it was before, or in its place one of the same weights, which
    `fmad calibrate` has made of it; returns its models:/ URI.

    Raises:
        UserError: the run is not finished, the detector has other weights, or the server refuses.
    """
    own = run / "detector"
    if not (own / "detector.json").is_file():
        raise UserError(f"{run}: no detector in it; give the directory of a finished training run.")
    if detector is not None and _weights_sha256(detector) != _weights_sha256(own):
        raise UserError(f"--model {detector}: not a detector of {run}, whose weights are others.")
    tracked = tracked_run(run)
    tracked.sync()
    return register_tracked(tracked, detector or own)


def _weights_sha256(detector: Path) -> str:
    from fmad_dist.detector.files import check_intact, read_spec

    spec = read_spec(detector)
    check_intact(detector, spec)
    return spec.weights_sha256


def sync_run(run: Path) -> str:
    """Send MLflow what it lacks of a run: metrics, how it ended, the detector; returns a sentence about it.

    Raises:
        UserError: this is no run directory, it has not trained, or the server cannot be used.
    """
    tracked = tracked_run(run)
    count = tracked.sync()
    said = f"{count} records sent, MLflow run {tracked.run_id} has all of them"
    if (run / "detector" / "detector.json").is_file() and not (run / REGISTERED_NAME).exists():
        said += f"; registered {register_tracked(tracked, run / 'detector')} (alias candidate)"
    return said


def tracked_run(run: Path) -> TrackedRun:
    """Return the tracking of a run directory, switched on.

    Raises:
        UserError: this is no run directory.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run}: no config.yaml in it; give the directory of a training run.")
    config = load_config(path)
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"mlflow": True})})
    return TrackedRun(config, RunRecord(run, is_main=True))


def _log_model(client: Any, detector: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Store a served model and make it a version; the digests in its tags are of the local files, taken before the
    artifact store has them."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.utils.autologging_utils.logging_and_warnings import MlflowEventsAndWarningsBehaviorGlobally

    from fmad_dist.serving.model import save_served

    # MLflow's messages about every step say nothing to a user of fmad.
    silence = MlflowEventsAndWarningsBehaviorGlobally(
        disable_event_logs=True, disable_warnings=True, reroute_warnings=False
    )
    with silence, tempfile.TemporaryDirectory(prefix="fmad-register-") as scratch:
        experiment = client.get_run(run_id).info.experiment_id
        model_id = client.create_logged_model(experiment, name="detector", source_run_id=run_id).model_id
        folder = Path(scratch) / "model"
        save_served(detector, folder, model_id=model_id, run_id=run_id)
        digests = json.dumps(file_digests(folder))
        client.log_model_artifacts(model_id, str(folder))
        client.finalize_logged_model(model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        version = mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags) | {FILES_TAG: digests})
    return str(version.version)


def write_lineage(detector: Path, config: RunConfig, run_id: str, run_tags: Mapping[str, str]) -> dict[str, Any]:
    """Write lineage.json into the detector's folder and return its content.

    `run_tags` are those of the MLflow run: they name the code that trained, which may be another than today's.
    """
    spec = json.loads((detector / "detector.json").read_text())
    lineage = {
        "run_id": run_id,
        "run": str(config.name),
        "code": run_tags.get("mlflow.source.git.commit") or "not known",
        "registered_by": code_version(),
        "data": spec["manifest_digests"],
        "manifests": list(map(from_anywhere, config.data.manifests)),
        "licences": spec["licences"],
        "licence_note": licence_note(spec["licences"]),
        "backbone": spec["features"]["backbone"],
        "backbone_digest": spec["backbone_digest"],
        "weights_sha256": spec["weights_sha256"],
        "train_step": spec["train_step"],
        "calibrated_on": (spec["calibration"] or {}).get("given"),  # None = held-out normals of the run
        "protocol": spec["protocol"],
        "class_names": spec["class_names"],
        "config": config.model_dump(mode="json"),
    }
    Store(detector).write(LINEAGE_NAME, (json.dumps(lineage, indent=1) + "\n").encode())
    return lineage


def lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    """Return the version's tags, for lists and searches; what is too long for a tag is in lineage.json only."""
    values = {name: lineage[name] for name in TAGS} | {"classes": len(lineage["class_names"])}
    tags = {f"fmad.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return {name: value for name, value in tags.items() if len(value) <= MAX_TAG}


def licence_note(licences: Mapping[str, str]) -> str:
    """Say what the licences of the training data forbid, or that they are not known."""
    restricted = [
        f"{name} ({text})"
        for name, text in sorted(licences.items())
        if any(mark in text.lower() for mark in _NOT_COMMERCIAL)
    ]
    unknown = [name for name, text in sorted(licences.items()) if not text or text.lower() in ("unknown", "not given")]
    notes = []
    if restricted:
        notes.append(f"trained on data for non-commercial use only: {', '.join(restricted)}")
    if unknown:
        notes.append(f"licence of the training data not known: {', '.join(unknown)}")
    return "; ".join(notes) or "no restriction known"
