"""A real PostgreSQL server for tests, on loopback. Needs the Debian package postgresql."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.radosgw import free_ports

START_SECONDS = 60
USER = "fmad"


def program(name: str) -> str | None:
    """Debian keeps the server's programs in a folder per version, outside PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def missing_programs() -> list[str]:
    return [name for name in ("initdb", "postgres") if program(name) is None]


class Postgres:
    """An empty server in `folder`, which must not exist. It refuses to run as root, so it runs as postgres then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._as: dict[str, object] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        else:
            self._as = {}

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> "Postgres":
        data = str(self.folder / "data")
        with open(self.folder / "log", "ab") as log:
            options = {"stdout": log, "stderr": log, "cwd": self.folder, **self._as}
            make = [program("initdb"), "-D", data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8"]
            subprocess.run(make, check=True, **options)  # type: ignore[call-overload]
            serve = [program("postgres"), "-D", data, "-p", str(self.port), "-k", "", "-h", "127.0.0.1", "-F"]
            self._process = subprocess.Popen(serve, **options)  # type: ignore[call-overload]
        deadline = time.monotonic() + START_SECONDS
        while "ready to accept connections" not in (text := (self.folder / "log").read_text()):
            assert self._process is not None
            assert self._process.poll() is None, text[-2000:]
            assert time.monotonic() < deadline, text[-2000:]
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
