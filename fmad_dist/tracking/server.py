"""The MLflow server: find it, make clients for it, and find versions in its registry."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.secrets import without_secrets
from fmad_dist.config.run import RunConfig
from fmad_dist.tracking.database import client_on, failures, sqlite_path, sqlite_uri

PREFIX = "models:/"


def tracking_uri(config: RunConfig) -> str:
    """Return the configured server, else MLFLOW_TRACKING_URI, else a sqlite file beside the runs."""
    chosen = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or sqlite_uri((Path(config.output) / "mlflow.db").resolve())


def shown_uri(config: RunConfig) -> str:
    """Return the server as files and messages name it, without a password."""
    return without_secrets(tracking_uri(config))


def full_uri(shown: str) -> str:
    """Return the server that a file names: a password that was left out of it is that of MLFLOW_TRACKING_URI.

    Raises:
        UserError: the variable is of another server, or not set.
    """
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    if without_secrets(own) == shown:
        return own
    if "***" in shown:
        raise UserError(f"{shown}: its password is not stored; set MLFLOW_TRACKING_URI to this server again.")
    return shown


def connect(uri: str) -> Any:
    """Make an MlflowClient on `uri`, see `use_server`; a sqlite file is made if it is not there.

    Raises:
        UserError: it is a database that cannot be made or used.
    """
    use_server(uri)
    return client_on(uri)


def use_server(uri: str) -> None:
    """Make MLflow use `uri`, write nothing to the terminal (no migration log, no bars for small files) and give up on a
    hanging server after a minute; with its own settings it waits for a quarter of an hour."""
    settings = {"ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "HTTP_REQUEST_TIMEOUT": "20", "HTTP_REQUEST_MAX_RETRIES": "2"}
    settings["SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # at the end of a run, with the password of the URI
    for name, value in settings.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def use_registry(uri: str | None) -> None:
    """Point MLflow at `uri`, or at runs/mlflow.db if it is there; else its own choice stands. Makes no file."""
    local = Path("runs/mlflow.db").resolve()
    if uri is None and local.exists():
        uri = sqlite_uri(local)
    if uri is not None:
        use_server(uri)


def registry_client() -> Any:
    """Make an MlflowClient on the registry that `use_registry` chose. Raises UserError as `client_at`."""
    import mlflow

    return client_at(mlflow.get_registry_uri())


def client_at(uri: str) -> Any:
    """Make an MlflowClient to read with.

    Raises:
        UserError: it would be on a database that is not there, which MLflow would make, or that cannot be used.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise UserError(
            f"{path}: no registry is there; name one by MLFLOW_TRACKING_URI (or --tracking-uri). Without them "
            "runs/mlflow.db in the working directory is taken, if it is there."
        )
    return connect(uri)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turn errors of the registry inside the block into one sentence about `what`."""
    import mlflow

    try:
        yield
    except failures() as error:
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
    """Return the model version behind models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS.

    Raises:
        UserError: the registry has none, cannot be reached, or this is no such URI.
    """
    name = model.removeprefix(PREFIX)
    if not model.startswith(PREFIX) or ("@" not in name and "/" not in name):
        raise UserError(f"{model}: write it as models:/NAME@ALIAS or models:/NAME/VERSION.")
    with answered(model):
        if "@" in name:
            return client.get_model_version_by_alias(*name.split("@", 1))
        name, number = name.split("/", 1)
        if number != "latest":
            return client.get_model_version(name, number)
        numbers = [int(one.version) for one in client.search_model_versions(f"name='{name}'")]
    if not numbers:
        raise UserError(f"{model}: the registry has no version of {name}; check the name and MLFLOW_TRACKING_URI.")
    with answered(model):
        return client.get_model_version(name, str(max(numbers)))


def aliased(client: Any, name: str, alias: str) -> Any:
    """Return the version with an alias, None if there is none.

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
    """Return what reports call a model: an alias moves on, so the version and the run behind it are named too.

    Raises:
        UserError: the registry has no such version, or cannot be reached.
    """
    if not model.startswith(PREFIX):
        return model
    version = version_of(registry_client(), model)
    exact = uri_of(version)
    return exact + (f", now {model}" if model != exact else "") + f", MLflow run {version.run_id}"
