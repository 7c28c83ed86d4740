"""The files of a registered version: downloaded, and compared with the digests that the registry has of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fmad_dist.base.errors import UserError
from fmad_dist.storage.scratch import passing_folder
from fmad_dist.tracking.database import sqlite_path
from fmad_dist.tracking.server import PREFIX, answered, client_at, registry_client, uri_of, version_of

FILES_TAG = "fmad.files_sha256"  # of every file of a version, by its path; JSON
DIGEST_TAG = "fmad.detector_sha256"  # of detector.json alone: what fmad 0.1 noted
ORIGIN_NAME = "registered_model_meta"  # MLflow adds it to a download: which version the files are of


def download_model(uri: str) -> Path:
    """Download the files of a registered model to a local folder, which is removed when the process ends.

    What MLflow stores lies open to whoever may write to the artifact store, code included, so the files are compared
    with the digests that the registry has of them before anything reads, loads or runs them. Models without digests are
    returned as they are: those of other tools, and logged models that are no registered version.

    Raises:
        UserError: the registry has no such model or version or cannot be reached, or the files are not those that were
            registered.
    """
    import mlflow

    client_at(mlflow.get_tracking_uri())  # or the download would make a database that is not there
    exact, tags = _registered(uri)
    target = passing_folder("fmad-model-")
    with answered(uri):
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=exact, dst_path=str(target)))
    _refuse(uri, _changed(folder, tags))
    return folder


def check_served(folder: Path) -> None:
    """Compare the files of a version, which MLflow has downloaded to `folder` and begun to load, with their digests.

    The code of the version runs already: this finds changed weights and settings, and changed code in `fmad serve` and
    `fmad registry promote` only, which come through `download_model`.

    Raises:
        UserError: they are not those that were registered, or the registry no longer has that version.
    """
    import mlflow
    import yaml

    origin = folder / ORIGIN_NAME
    if not origin.is_file():  # the files were not taken from a registry
        return
    noted = yaml.safe_load(origin.read_text())
    uri = f"{PREFIX}{noted['model_name']}/{noted['model_version']}"
    database = sqlite_path(mlflow.get_registry_uri())
    if database is not None and not database.exists():
        return  # a container that was built from the version has no registry
    version = version_of(registry_client(), uri)
    changed = _changed(folder, version.tags)
    _refuse(uri, [name for name in changed if "__pycache__" not in name])  # Python's, of the code that runs


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` by its path, without the one that MLflow adds to a download."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(ORIGIN_NAME, None)
    return {name: _sha256(path) for name, path in files.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(folder: Path, tags: Mapping[str, str]) -> list[str]:
    """Return the files that were changed, added or removed since the version was registered."""
    if FILES_TAG not in tags and DIGEST_TAG not in tags:
        return []
    found = file_digests(folder)
    if FILES_TAG in tags:
        noted = json.loads(tags[FILES_TAG])
        return sorted(name for name in found.keys() | noted.keys() if found.get(name) != noted.get(name))
    return [n for n, digest in found.items() if Path(n).name == "detector.json" and digest != tags[DIGEST_TAG]]


def _refuse(uri: str, changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{uri}: {', '.join(changed[:3])}{more} not what was registered, so somebody changed the stored files; do "
            "not use this version, register the run again."
        )


def _registered(uri: str) -> tuple[str, Mapping[str, str]]:
    """Return the URI with the version that an alias means now, and its tags; none for models that are no version."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if not uri.startswith("models:"):
        return uri, {}
    client = registry_client()
    with answered(uri):
        found = get_model_name_and_version(client, uri)
        if len(found) == 1:  # models:/m-..., a logged model
            return uri, {}
        version = client.get_model_version(*found)
    return uri_of(version), version.tags
