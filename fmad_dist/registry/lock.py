"""One promotion of a model at a time, on any MLflow server.

MLflow has no conditional writes, but of two clients that create a registered model of the same name one is refused, by
the database. An empty registered model of a reserved name is the lock.
"""

import getpass
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fmad_dist.errors import UserError
from fmad_dist.registry.versions import answered

SUFFIX = ".promotion-lock"


@contextmanager
def promotion_lock(client: Any, name: str, break_lock: bool = False) -> Iterator[None]:
    """Hold the lock of a registered model; `break_lock` removes one that a dead process has left.

    Raises:
        UserError: another promotion holds it, or the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    lock = name + SUFFIX
    if break_lock:
        with suppress(MlflowException):
            client.delete_registered_model(lock)
    try:
        client.create_registered_model(lock, tags={"fmad.owner": _me()}, description="made by fmad while it promotes")
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            raise UserError(
                f"{name}: another promotion is under way ({_owner(client, lock)}); wait for it, or use --break-lock if "
                "that process is dead."
            ) from None
        with answered(name):
            raise
    try:
        yield
    finally:
        with suppress(MlflowException):
            client.delete_registered_model(lock)


def _me() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since {now}"


def _owner(client: Any, lock: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_registered_model(lock).tags.get("fmad.owner", "owner not known"))
    except MlflowException:  # it ended just now
        return "it has just ended"
