"""Finding versions in the registry, and their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmad_dist.errors import UserError, first_line
from fmad_dist.storage.scratch import passing_folder
from fmad_dist.tracking.runs import connect, use_server

PREFIX = "models:/"
DIGEST_TAG = "fmad.detector_sha256"  # of detector.json, which has the digest of the weights


def use_registry(uri: str | None) -> None:
    """Point MLflow at `uri`, or at the sqlite file beside local runs when there is no other word. Makes no file."""
    local = Path("runs/mlflow.db").resolve()
    if uri is None and local.exists():
        uri = f"sqlite:///{local}"
    if uri is not None:
        use_server(uri)


def registry_client() -> Any:
    """An MlflowClient on the registry that `use_registry` chose. Raises UserError as `client_at`."""
    import mlflow

    return client_at(mlflow.get_registry_uri())


def client_at(uri: str) -> Any:
    """An MlflowClient to read with.

    Raises:
        UserError: it would be on a database that is not there, which MLflow would make.
    """
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not Path(path).exists():
        raise UserError(
            f"{path}: no registry is there; name one by MLFLOW_TRACKING_URI (or --tracking-uri). Without them "
            "runs/mlflow.db in the working directory is taken, if it is there."
        )
    return connect(uri)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turns the refusals of a registry into one sentence about `what`."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        if any(f"code {code}" in str(error) for code in (401, 403)):
            raise UserError(
                f"{what}: the registry at {mlflow.get_registry_uri()} refuses this user; check "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            ) from None
        raise UserError(
            f"{what}: not in the registry at {mlflow.get_registry_uri()} ({first_line(error)}); check the name, the "
            "alias and MLFLOW_TRACKING_URI (or --tracking-uri)."
        ) from None


def version_of(client: Any, model: str) -> Any:
    """The model version behind models:/NAME/VERSION or models:/NAME@ALIAS.

    Raises:
        UserError: the registry has none, cannot be reached, or this is no such URI.
    """
    name = model.removeprefix(PREFIX)
    if not model.startswith(PREFIX) or ("@" not in name and "/" not in name):
        raise UserError(f"{model}: write it as models:/NAME@ALIAS or models:/NAME/VERSION.")
    with answered(model):
        if "@" in name:
            return client.get_model_version_by_alias(*name.split("@", 1))
        return client.get_model_version(*name.split("/", 1))


def aliased(client: Any, name: str, alias: str) -> Any:
    """The version with an alias, None if there is none.

    Raises:
        UserError: there is no such model, or the registry cannot be reached.
    """
    with answered(f"{PREFIX}{name}"):
        aliases = client.get_registered_model(name).aliases
        return client.get_model_version(name, aliases[alias]) if alias in aliases else None


def uri_of(version: Any) -> str:
    """The URI that always means this version."""
    return f"{PREFIX}{version.name}/{version.version}"


def named_version(model: str) -> str:
    """What a report calls a model: an alias moves on, so the version and the run behind it are named too.

    Raises:
        UserError: the registry has no such version, or cannot be reached.
    """
    if not model.startswith(PREFIX):
        return model
    version = version_of(registry_client(), model)
    exact = uri_of(version)
    return exact + (f", now {model}" if model != exact else "") + f", MLflow run {version.run_id}"


def download_model(uri: str) -> Path:
    """The files of a registered model as a local folder, which is removed when the process ends.

    Raises:
        UserError: the registry has no such model or version, or cannot be reached.
    """
    import mlflow

    client_at(mlflow.get_tracking_uri())  # or the download would make a database that is not there
    target = passing_folder("fmad-model-")
    with answered(uri):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))


def registered_digest(uri: str) -> tuple[str, str | None]:
    """The URI with the version that an alias means now, and the SHA-256 that its `detector.json` had when it was
    registered; None for versions without that tag and for models that are no registered version.

    Raises:
        UserError: the registry has no such model or version, or cannot be reached.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if not uri.startswith("models:"):
        return uri, None
    client = registry_client()
    with answered(uri):
        found = get_model_name_and_version(client, uri)
        if len(found) == 1:  # models:/m-..., a logged model
            return uri, None
        version = client.get_model_version(*found)
    return uri_of(version), version.tags.get(DIGEST_TAG)
