"""The store against a real S3 server: faults that cannot be made up."""

import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.storage.ranges import ByteRange
from tests.support.radosgw import Radosgw

pytestmark = pytest.mark.slow


def test_patience_ends_in_one_sentence(radosgw: Radosgw, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens to the discard service
    with pytest.raises(UserError, match="does not answer") as caught:
        Store(f"{bucket}/x", patience_s=1).read("a")
    assert f"{bucket}/x/a" in str(caught.value)


@pytest.mark.parametrize("method", ["exists", "read", "list", "size"])
def test_a_wrong_secret_is_refused_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    start = time.monotonic()
    with pytest.raises(UserError, match="access denied") as caught:
        getattr(Store(f"{bucket}/x"), method)("a")
    assert time.monotonic() - start < 10
    assert f"{bucket}/x/a" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(UserError, match="not found"):
        Store(f"{bucket}-other/x").read("a")


def test_expired_credentials_are_renewed(
    radosgw: Radosgw, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain's file gets a new key and the old one stops to work, while the store is in use."""
    profile = tmp_path / "credentials"

    def issue(access_key: str) -> None:
        radosgw.add_key(access_key, f"secret-of-{access_key}")
        profile.write_text(f"[default]\naws_access_key_id={access_key}\naws_secret_access_key=secret-of-{access_key}\n")

    issue("first")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    store = Store(f"{bucket}/x")
    store.write("a", b"content")
    issue("second")
    radosgw.remove_key("first")
    assert store.read("a") == b"content"
    radosgw.remove_key("second")
    with pytest.raises(UserError, match="access denied"):
        store.read("a")


def test_conditional_puts(bucket: str) -> None:
    store = Store(f"{bucket}/x")
    assert store.write_if("m", b"1", seen=None)
    assert not store.write_if("m", b"2", seen=None)
    assert not store.write_if("m", b"2", seen=b"0")
    assert store.write_if("m", b"2", seen=b"1")
    assert store.read("m") == b"2"

    winners: list[bytes] = []

    def compete(number: int) -> None:
        own = Store(f"{bucket}/x")
        data = f"{number}".encode()
        if own.write_if("raced", data, seen=None):
            winners.append(data)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [store.read("raced")]


def test_unfinished_uploads_are_given_up(bucket: str) -> None:
    store, other = Store(f"{bucket}/x"), Store(f"{bucket}/y")
    name = bucket.removeprefix("s3://")
    for prefix in ("x", "y"):
        store.fs.call_s3("create_multipart_upload", Bucket=name, Key=f"{prefix}/big")
    assert store.abort_uploads(datetime(2000, 1, 1, tzinfo=UTC)) == 0
    assert store.abort_uploads(datetime.max.replace(tzinfo=UTC)) == 1
    assert other.abort_uploads(datetime.max.replace(tzinfo=UTC)) == 1


def test_objects_survive_the_gateway(radosgw: Radosgw, bucket: str) -> None:
    """Killed between reads, it is waited for. Last here: its locks slow new buckets for 30 s."""
    store = Store(f"{bucket}/x", patience_s=60)
    data = os.urandom(3 << 20)
    store.write("a/b", data)
    assert store.read_ranges([ByteRange("a/b", 5, 9), ByteRange("a/b", 1 << 20, 5 << 20)]) == [
        data[5:9],
        data[1 << 20 :],
    ]
    assert store.read_ranges([ByteRange("a/b", 4 << 20, 5 << 20)]) == [b""]
    radosgw.kill()
    back = threading.Timer(1.5, radosgw.restart)
    back.start()
    start = time.monotonic()
    assert store.read("a/b") == data
    assert time.monotonic() - start > 1.0
    back.join()
    assert store.list() == ["a/b"]
