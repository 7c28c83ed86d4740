"""Fixtures with servers: moto's S3 for quick tests, Ceph's RADOS gateway for real ones, PostgreSQL."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.radosgw import Radosgw, is_running, missing_programs


@pytest.fixture(scope="session")
def radosgw() -> Iterator[Radosgw]:
    """A running gateway. Where continuous integration runs, its absence is an error."""
    missing = missing_programs()
    if missing:
        reason = f"no real S3 server: {', '.join(missing)} not installed (radosgw ceph-mon ceph-osd ceph-common)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="fmad-s3-") as folder:  # a short path: sockets have at most 107 characters
        server = Radosgw(Path(folder) / "ceph").start()
        yield server
        pids = [int(path.read_text()) for path in server.folder.glob("*.pid")]
        server.stop()
        assert len(pids) == 3
        assert not any(map(is_running, pids)), "a daemon outlived its tests"


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a running, empty PostgreSQL. Where continuous integration runs, its absence is an error."""
    missing = postgres.missing_programs()
    if missing:
        reason = f"no PostgreSQL: {', '.join(missing)} not installed (postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="fmad-sql-") as folder:
        os.chmod(folder, 0o755)  # the server runs as another user
        server = postgres.Postgres(Path(folder) / "postgres").start()
        yield server.url
        server.stop()


@pytest.fixture
def bucket(radosgw: Radosgw, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://<a new bucket>` on the real server, with the environment that reaches it."""
    yield from _new_bucket(radosgw.environment, monkeypatch)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[dict[str, str]]:
    """The environment that reaches moto's S3 in this process; it accepts any secret."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "moto",
        "AWS_SECRET_ACCESS_KEY": "moto",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def moto_bucket(moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://<a new bucket>` on moto, with the environment that reaches it."""
    yield from _new_bucket(moto_server, monkeypatch)


def _new_bucket(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
