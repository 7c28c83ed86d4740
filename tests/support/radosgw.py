"""A real S3 server for tests: one Ceph monitor and one OSD in memory behind the RADOS gateway, on loopback.

Needs the Debian packages radosgw, ceph-mon, ceph-osd and ceph-common. By hand:
    python tests/support/radosgw.py /tmp/s3      # prints the environment for clients, runs until Ctrl-C
"""

import atexit
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool")
START_SECONDS = 90

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {memory}
osd numa auto affinity = false
mon allow pool size one = true
mon max pg per osd = 1000
run dir = {folder}
pid file = {folder}/$name.pid
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon.a
osd data = {folder}/osd.0
keyring = {folder}/keyring
rgw enable usage log = false
rgw frontends = beast endpoint=0.0.0.0:{port}
rgw thread pool size = 32
"""
KEYS = {
    "mon.": ("mon allow *",),
    "client.admin": ("mon allow *", "osd allow *", "mds allow *", "mgr allow *"),
    "client.rgw": ("mon allow rwx", "osd allow rwx", "mgr allow rw"),
    "osd.0": ("mon allow profile osd", "osd allow *", "mgr allow profile osd"),
}


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Radosgw:
    """A gateway in `folder`, which must not exist. The gateway can be killed and restarted; its objects stay."""

    def __init__(self, folder: Path, memory: int = 4 << 30) -> None:
        self.folder = folder
        self.port, mon_v1, mon_v2 = free_ports(3)
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        folder.mkdir(parents=True)
        values = {"fsid": uuid.uuid4(), "mon_v1": mon_v1, "mon_v2": mon_v2, "port": self.port, "memory": memory}
        self._configuration = folder / "ceph.conf"
        self._configuration.write_text(CONFIGURATION.format(folder=folder, **values))
        self._fsid = str(values["fsid"])
        self._monitor = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs; nothing else has to know the endpoint or the keys."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> "Radosgw":
        atexit.register(self.stop)
        self._make_keys()
        self._start_monitor()
        self._start_osd()
        self.add_key(self.access_key, self.secret_key)
        self.restart()
        return self

    def restart(self) -> None:
        """Start the gateway again, with everything that was stored before."""
        self._run("radosgw", "-n", "client.rgw")
        self._wait("the gateway", self._answers)

    def kill(self) -> None:
        """SIGKILL the gateway alone."""
        self._end("client.rgw", signal.SIGKILL)

    def stop(self) -> None:
        """Kill everything and remove the folder."""
        for name in ("client.rgw", "osd.0", "mon.a"):
            self._end(name, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.stop)

    def add_key(self, access_key: str, secret_key: str) -> None:
        command = ["user", "create"] if access_key == self.access_key else ["key", "create"]
        words = ["--uid=test", "--display-name=test", f"--access-key={access_key}", f"--secret={secret_key}"]
        self._run("radosgw-admin", *command, *words)

    def remove_key(self, access_key: str) -> None:
        self._run("radosgw-admin", "key", "rm", "--uid=test", f"--access-key={access_key}")

    def _make_keys(self) -> None:
        for number, (name, capabilities) in enumerate(KEYS.items()):
            create = ["--create-keyring"] if number == 0 else []
            words = [word for text in capabilities for word in ("--cap", *text.split(" ", 1))]
            keyring = str(self.folder / "keyring")
            self._plain("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *words)

    def _start_monitor(self) -> None:
        (self.folder / "mon.a").mkdir()
        monmap = str(self.folder / "monmap")
        self._plain("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", self._monitor, monmap)
        keyring = str(self.folder / "keyring")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._run("ceph-mon", "-i", "a")

    def _start_osd(self) -> None:
        (self.folder / "osd.0").mkdir()
        self._run("ceph", "osd", "new", str(uuid.uuid4()))
        osd = json.loads(self._run("ceph", "osd", "dump", "-f", "json"))["osds"][0]
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd["uuid"])
        self._run("ceph-osd", "-i", "0")
        self._wait("the OSD", lambda: "1 up" in self._run("ceph", "osd", "stat"))

    def _answers(self) -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _run(self, program: str, *words: str) -> str:
        return self._plain(program, "-c", str(self._configuration), *words)

    def _plain(self, program: str, *words: str) -> str:
        """Run a program to its end (daemons detach themselves); its output is the error's text."""
        output = self.folder / f"{program}.out"
        with open(output, "w") as file, open(self.folder / f"{program}.err", "w") as errors:
            code = subprocess.run([program, *words], stdout=file, stderr=errors, timeout=START_SECONDS, check=False)
        if code.returncode:
            raise RuntimeError(f"{program} {' '.join(words)}: {(self.folder / f'{program}.err').read_text()[-2000:]}")
        return output.read_text()

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start within {START_SECONDS} s; see the logs in {self.folder}")
            time.sleep(0.1)

    def _end(self, name: str, sign: signal.Signals) -> None:
        """Kill a daemon and wait until it is gone."""
        file = self.folder / f"{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        try:
            os.kill(pid, sign)
            while is_running(pid):
                time.sleep(0.02)
        except ProcessLookupError:
            pass
        file.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process is there and is not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def main() -> None:
    missing = missing_programs()
    if missing:
        sys.exit(f"not installed: {', '.join(missing)} (Debian: radosgw ceph-mon ceph-osd ceph-common)")
    server = Radosgw(Path(sys.argv[1])).start()
    for name, value in server.environment.items():
        print(f"export {name}={value}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
