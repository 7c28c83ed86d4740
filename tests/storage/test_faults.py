"""Which failures are waited for, and what is said about those that are final."""

import errno
from collections.abc import Callable

import fsspec
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store, use_endpoint
from fmad_dist.storage import faults as faults_module
from fmad_dist.storage.faults import Fault, fault_of, with_retries


def answer(status: int) -> ClientError:
    return ClientError({"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileNotFoundError("x"), Fault.MISSING),
        (PermissionError("x"), Fault.DENIED),
        (NoCredentialsError(), Fault.DENIED),
        (ConnectionResetError("x"), Fault.PASSING),
        (TimeoutError("x"), Fault.PASSING),
        (OSError(errno.EBUSY, "slow down"), Fault.PASSING),
        (OSError(errno.EIO, "internal error"), Fault.PASSING),
        (EndpointConnectionError(endpoint_url="http://x"), Fault.PASSING),
        (ReadTimeoutError(endpoint_url="http://x"), Fault.PASSING),
        (ClientPayloadError("cut"), Fault.PASSING),
        (answer(503), Fault.PASSING),
        (answer(429), Fault.PASSING),
        (answer(400), Fault.REFUSED),
        (OSError(errno.EINVAL, "invalid"), Fault.REFUSED),
        (OSError(errno.ENOSPC, "disk full"), Fault.REFUSED),
        (TypeError("a bug"), Fault.FOREIGN),
        (ValueError("a bug"), Fault.FOREIGN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_kinds_of_faults(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        monkeypatch.setattr(faults_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(faults_module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def failing(*errors: Exception) -> Callable[[], str]:
    """An operation that fails with each of the errors in turn and then succeeds."""
    left = list(errors)

    def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation


def test_an_outage_is_waited_out_with_growing_pauses(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_retries(failing(*[ConnectionError("away")] * 12), "s3://b/x", 300.0, renew=pytest.fail) == "done"
    most = [min(0.2 * 2**n, 15.0) for n in range(12)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(clock.waits, most, strict=True))
    assert len(set(clock.waits)) == 12  # jitter
    lines = capsys.readouterr().err.splitlines()  # said once when it begins and once when it ends
    assert len(lines) == 2
    assert "s3://b/x: the storage does not answer (away); trying again for 300 s" in lines[0]
    assert "answers again" in lines[1]


def test_patience_ends(clock: Clock) -> None:
    with pytest.raises(ConnectionError):
        with_retries(failing(*[ConnectionError("away")] * 1000), "s3://b/x", 40.0, renew=pytest.fail)
    assert sum(clock.waits) == pytest.approx(40.0)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), OSError(errno.EINVAL, "x"), TypeError("x")])
def test_what_would_fail_again_is_not_tried_again(clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error)):
        with_retries(failing(error), "s3://b/x", 300.0, renew=pytest.fail)
    assert clock.waits == []


def test_credentials_are_renewed_once(clock: Clock) -> None:
    renewed: list[int] = []
    denied = PermissionError("expired")
    assert with_retries(failing(denied), "s3://b/x", 300.0, lambda: renewed.append(1)) == "done"
    assert renewed == [1]
    with pytest.raises(PermissionError):
        with_retries(failing(denied, denied), "s3://b/x", 300.0, lambda: renewed.append(1))
    assert clock.waits == []


@pytest.mark.parametrize(
    "url",
    ["s3://KEY:SECRET@bucket/x", "https://host/x?X-Amz-Signature=SECRET", "s3://KEY@bucket", "abfs://c@a/x?sig=SECRET"],
)
def test_urls_with_credentials_are_refused_without_saying_them(url: str) -> None:
    with pytest.raises(UserError, match="must not hold credentials") as caught:
        Store(url)
    assert "SECRET" not in str(caught.value)
    assert "KEY:" not in str(caught.value)


def test_a_container_of_azure_is_no_credential() -> None:
    """The filesystem itself is another package; fsspec's own one in memory stands for it."""

    class Azure(MemoryFileSystem):
        protocol = ("abfs",)

    fsspec.register_implementation("abfs", Azure, clobber=True)
    store = Store("abfs://container@account.dfs.core.windows.net/photos")
    store.write("a.txt", b"content")
    assert Store(store.url).read("a.txt") == b"content"
    with pytest.raises(UserError, match="must not hold credentials"):
        Store("abfs://container:SECRET@account.dfs.core.windows.net/photos")


@pytest.mark.parametrize("url", ["localhost:9000", "s3://bucket", "http://", "http://KEY:SECRET@host"])
def test_endpoints_are_checked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(UserError):
        use_endpoint(url)
    use_endpoint(None)
    import os

    assert "AWS_ENDPOINT_URL" not in os.environ
