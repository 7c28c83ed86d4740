"""The sqlite file that MLflow keeps its runs in where there is no server: its URI, how it is made, and its errors.

MLflow makes the tables by some fifty migrations. Of two processes that do so in one file both fail, and so does one
that is killed in between, and the file is of no use ever after. So it is made under another name, by one process of
those that want it, and is whole when it has its name.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.secrets import without_secrets
from fmad_dist.storage.scratch import folder_lock, sync_folder

SQLITE = "sqlite:///"
WAIT_S = 60.0  # for another process that writes


def sqlite_uri(path: Path) -> str:
    """The URI of an sqlite file at any absolute path.

    A path with `%` or `?` is quoted, its slashes too: MLflow takes the quoted text for a path as well, and makes the
    folder of that; so there is none in it.

    Raises:
        UserError: the installed SQLAlchemy has no way to write this path.
    """
    plain = f"{SQLITE}{path}"
    if not {"%", "?"} & set(str(path)):
        return plain
    for uri in (SQLITE + quote(str(path), safe=""), plain):  # SQLAlchemy 2.1 takes the quotes off, those before do not
        if sqlite_path(uri) == path:
            return uri
    raise UserError(f"{path}: a path with % or ? that SQLAlchemy cannot open; choose another `output`.")


def sqlite_path(uri: str) -> Path | None:
    """The file that a URI means, None if it is no sqlite file."""
    if not uri.startswith(SQLITE):
        return None
    from sqlalchemy.engine import make_url

    found = make_url(uri).database
    return Path(found) if found and found != ":memory:" else None


def failures() -> tuple[type[Exception], ...]:
    """What a client of MLflow raises when its server, or the database that it works on itself, does not do as it is
    asked; `except failures()` imports these only then."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, OSError, SQLAlchemyError, CommandError, sqlite3.Error


def client_on(uri: str) -> Any:
    """Make an MlflowClient; an sqlite file that is not there is made first.

    Raises:
        UserError: it is a database that cannot be made or used.
    """
    import mlflow

    path = sqlite_path(uri)
    if path is None:
        return mlflow.MlflowClient(uri, uri)
    with _explained(path), ExitStack() as stack:
        with suppress(OSError):  # nothing can be made in a folder that cannot be written
            stack.enter_context(folder_lock(path.parent))
        if not (path.exists() and path.stat().st_size):
            _make(path)
        _check_opens(path)
        return mlflow.MlflowClient(uri, uri)


def _make(path: Path) -> None:
    """Make the tables under another name and rename the file; for one process at a time.

    A kill leaves a file that the next start removes. It is not locked as other scratch files are: on NFS sqlite would
    wait for that lock for ever.
    """
    import mlflow

    scratch = path.with_name(f".{path.name}.new")
    for leftover in (scratch, scratch.with_name(f"{scratch.name}-journal")):
        leftover.unlink(missing_ok=True)
    mlflow.MlflowClient(sqlite_uri(scratch), sqlite_uri(scratch))
    os.replace(scratch, path)
    sync_folder(path.parent)


def _check_opens(path: Path) -> None:
    """Read one table (sqlite3.Error); MLflow would try to open what is no database for two minutes."""
    where = f"file:{quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(where, uri=True, timeout=WAIT_S)) as database:
        database.execute("select count(*) from sqlite_master").fetchone()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except failures() as error:
        reason = without_secrets(first_line(error))
        raise UserError(
            f"{SQLITE}{path}: cannot be used as MLflow's database ({reason}); make room, check the permissions, "
            "restore the file or move it away, or train with tracking.mlflow=false."
        ) from None
