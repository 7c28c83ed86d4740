"""A real `mlflow server` for tests, and a proxy before it that can behave like a bad one."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

START_SECONDS = 180  # it imports much, and makes its tables

Fault = Literal["none", "error", "hang", "forbidden"]


AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class MlflowServer:
    """A tracking server on sqlite with artifacts in `folder`; what it stored survives `kill` and another `start`.

    As large installations have it: `store` is the URL of a database, `artifacts` that of a bucket, `admin` is a name
    and a password of at least 12 characters that every request must have.
    """

    def __init__(
        self,
        folder: Path,
        store: str | None = None,
        artifacts: str | None = None,
        admin: tuple[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self.artifacts = artifacts or str(folder / "artifacts")
        self.admin = admin
        self.host = host
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "MlflowServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--backend-store-uri", self.store, "--workers", "1", "--artifacts-destination", self.artifacts]
        environment = {**os.environ, "MLFLOW_SERVER_ALLOWED_HOSTS": "*"}  # nodes reach it by its address
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes, for what is not used here
        environment["MLFLOW_S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
        if self.admin is not None:
            command += ["--app-name", "basic-auth"]
            settings = self.folder / "auth.ini"
            settings.write_text(AUTH.format(folder=self.folder, user=self.admin[0], password=self.admin[1]))
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test"}
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        wait_until_answers(f"{self.url}/health", self._process, self.folder / "server.log", START_SECONDS)
        return self

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()


def answers(url: str) -> bool:
    """Whether a GET of the URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until_answers(url: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    """Raises AssertionError with the end of its log if the server ends or `seconds` are over before."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        time.sleep(0.2)


class BadProxy:
    """Passes requests on to `target_port`, or does what `fault` says: status 500, no answer at all, status 401."""

    def __init__(self, target_port: int) -> None:
        self.fault: Fault = "none"
        self.num_faults = 0
        self._over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.fault == "none":
                    self._reply(*proxy._forward(target_port, self.command, self.path, dict(self.headers), body))
                    return
                proxy.num_faults += 1
                if proxy.fault == "hang":
                    proxy._over.wait(600)
                    self.close_connection = True
                    return
                self._reply({"error": 500, "forbidden": 401}[proxy.fault], b"no", "text/plain")

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def _reply(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):  # the client gave up
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def behave(self, fault: Fault) -> None:
        """From now on; requests that hang are let go."""
        self.fault = fault
        self._over.set()
        self._over = threading.Event()

    def stop(self) -> None:
        self.behave("none")
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _forward(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Type", "application/json")
        except OSError:
            return 502, b"the server is away", "text/plain"
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
