"""`fmad serve`: MLflow's scoring server around a detector whose files were checked.

`mlflow models serve` runs the Python file that lies in the artifact store before anything can be checked; here the code
is that of the installed fmad, whatever is stored.
"""

import json
import os
from pathlib import Path
from typing import Any

from fmad_dist.detector.files import check_intact, read_spec
from fmad_dist.storage.scratch import passing_folder

MAX_BODY_BYTES = 256 << 20  # of a request
FOLDER_VARIABLE = "FMAD_SERVED_FOLDER"  # from `serve` to its workers


def serve(detector: Path, host: str, port: int, workers: int) -> None:
    """Answer requests with the detector in a folder until the process is stopped.

    Raises:
        UserError: its files are damaged or were changed.
    """
    import uvicorn

    check_intact(detector, read_spec(detector))
    os.environ[FOLDER_VARIABLE] = str(_as_mlflow_model(detector))
    uvicorn.run("fmad_dist.serving.server:application", factory=True, host=host, port=port, workers=workers)


def _as_mlflow_model(detector: Path) -> Path:
    from fmad_dist.serving.model import save_served

    target = passing_folder("fmad-serve-") / "model"
    save_served(detector, target)
    return target


def application() -> Any:
    """The ASGI application of one worker: `/invocations`, `/ping`, `/health`, `/version`."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    return BodyLimit(scoring_server.init(mlflow.pyfunc.load_model(os.environ[FOLDER_VARIABLE])))


class BodyLimit:
    """Refuse a request whose body is larger than `limit` bytes with 413, before it has memory."""

    def __init__(self, application: Any, limit: int = MAX_BODY_BYTES) -> None:
        self.application, self.limit = application, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.application(scope, receive, send)
            return
        stated = headers.get(b"content-length", b"")
        if not stated.isdigit():
            await self._refuse(send, 411, "state the length of the request (Content-Length)")
        elif int(stated) > self.limit:
            await self._refuse(send, 413, f"a request may have {self.limit >> 20} MB; send fewer images at a time")
        else:
            await self.application(scope, receive, send)

    @staticmethod
    async def _refuse(send: Any, status: int, sentence: str) -> None:
        body = json.dumps({"error_code": "BAD_REQUEST", "message": f"{sentence}."}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
