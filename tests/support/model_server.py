"""A real server of one registered detector: that of MLflow, or `fmad serve`."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.support.mlflow_server import answers, free_port, wait_until_answers

START_SECONDS = 180
ANSWER_SECONDS = 300  # eight clients may wait for one worker


class ModelServer:
    """Serves `uri` from the registry at `tracking` until `stop`; what it says goes to the file `log`."""

    def __init__(self, uri: str, tracking: str, log: Path, by_fmad: bool = False, **settings: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        if by_fmad:
            command = [sys.executable, "-m", "fmad_dist.cli", "serve", "--model", uri]
        else:
            command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", uri]
        command += ["--port", self.url.rpartition(":")[2]]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts uvicorn by its name
        environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking, "PATH": path, "MALLOC_ARENA_MAX": "1", **settings}
        environment["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(ANSWER_SECONDS)
        with open(log, "wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)
        wait_until_answers(f"{self.url}/ping", self._process, log, START_SECONDS)

    def alive(self) -> bool:
        return answers(f"{self.url}/ping")

    def ask(self, body: dict[str, Any]) -> Any:
        """The answer to a request. Raises urllib's HTTPError for other states than 200, AssertionError for no JSON."""
        request = urllib.request.Request(
            f"{self.url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.loads(answer.read(), parse_constant=_refuse)

    def memory_mb(self) -> float:
        """Resident memory of the server and its workers."""
        total = 0
        for one in [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return round(total / 1e6, 1)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def table(images: list[Any]) -> dict[str, Any]:
    """A request for these images."""
    return {"columns": ["image"], "data": [[image] for image in images]}


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
