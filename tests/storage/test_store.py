import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.store import from_anywhere


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(tmp_path / "folder")
        return
    yield Store(f"memory://{tmp_path.name}/folder")


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.size("a/b.bin") == 10
    assert store.exists("a/b.bin")
    assert store.exists()
    assert not store.exists("a/c.bin")
    assert store.url_of("a/b.bin") == f"{store.url}/a/b.bin"


def test_a_write_replaces(store: Store) -> None:
    store.write("x", b"a longer content")
    store.write("x", b"short")
    assert store.read("x") == b"short"


def test_upload_copies_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    store.upload(tmp_path / "file", "a/copy")
    assert store.read("a/copy") == b"content"


def test_a_range_ends_where_the_object_ends(store: Store) -> None:
    store.write("x", b"0123456789")
    assert store.read_range("x", 2, 5) == b"234"
    assert store.read_range("x", 8, 20) == b"89"
    assert store.read_range("x", 0, 10) == b"0123456789"
    assert store.read_range("x", 4, 4) == b""


@given(st.binary(max_size=200), st.integers(0, 250), st.integers(0, 250))
def test_ranges_are_slices(data: bytes, start: int, length: int) -> None:
    store = Store("memory://slices")
    store.write("x", data)
    assert store.read_range("x", start, start + length) == data[start : start + length]


def test_names_are_listed_recursively_and_sorted(store: Store) -> None:
    for name in ("b", "a/2", "a/10", "c/d/e"):
        store.write(name, b"")
    assert store.list() == ["a/10", "a/2", "b", "c/d/e"]
    assert store.list("a") == ["a/10", "a/2"]
    assert store.child("c").list() == ["d/e"]


def test_an_unfinished_write_is_not_listed(store: Store) -> None:
    store.write(f"a/{TEMPORARY_PREFIX}123", b"half")
    store.write("a/whole", b"")
    assert store.list() == ["a/whole"]


def test_an_empty_folder_lists_nothing(store: Store) -> None:
    assert store.list() == []


def test_remove_takes_files_and_folders(store: Store) -> None:
    for name in ("a/1", "a/2", "b"):
        store.write(name, b"")
    store.remove("a")
    store.remove("b")
    assert store.list() == []


@pytest.mark.parametrize("call", ["read", "size", "remove"])
def test_a_missing_name_is_named(store: Store, call: str) -> None:
    with pytest.raises(UserError, match="not found") as caught:
        getattr(store, call)("no/such.tar")
    assert f"{store.url}/no/such.tar" in str(caught.value)


def test_a_range_of_a_missing_name_is_named(store: Store) -> None:
    with pytest.raises(UserError, match=r"/gone: not found"):
        store.read_range("gone", 0, 1)


def test_a_failed_local_write_leaves_the_old_bytes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write("a/x", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        store.write("a/x", b"new")
    assert str(tmp_path / "a" / "x") in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert store.read("a/x") == b"old"


def test_an_upload_of_a_missing_file_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        store.upload(tmp_path / "missing", "target")
    assert store.list() == []
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize(("url", "hint"), [("memory://denied", "credentials"), ("denied", "permissions")])
def test_a_refusal_names_the_url(url: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(url)

    class Refusing:
        def cat_file(self, *_: Any, **__: Any) -> bytes:
            raise PermissionError("Forbidden\nwith a long XML body")

    monkeypatch.setattr(Store, "fs", Refusing())
    with pytest.raises(UserError, match="access denied") as caught:
        store.read("x")
    message = str(caught.value)
    assert f"{url}/x" in message
    assert hint in message
    assert "\n" not in message


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        Store(tmp_path / "file").write("x", b"")
    with pytest.raises(UserError, match=str(tmp_path)):
        Store(tmp_path).read("")


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s4://bucket"])
def test_an_unknown_protocol_names_the_url(url: str) -> None:
    with pytest.raises(UserError, match="cannot be opened") as caught:
        Store(url).exists("x")
    assert url in str(caught.value)


def test_bugs_of_ours_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Store(tmp_path).write("x", None)  # type: ignore[arg-type]


def test_a_store_is_pickled_closed(store: Store) -> None:
    store.write("x", b"content")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.url == store.url
    assert copy.__getstate__()["_fs"] is None
    assert copy.read("x") == b"content"


def test_another_process_opens_its_own_filesystem(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork the inherited s3fs hangs, so the process number decides."""
    ours = store.fs
    assert store.fs is ours
    monkeypatch.setattr("os.getpid", lambda: -5)
    assert store.fs is not ours


def test_the_roots_of_filesystems_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("memory://").write("at-the-root", b"1")
    assert Store("memory://").read("at-the-root") == b"1"
    assert "at-the-root" in Store("memory://").list()
    assert not Store("memory://").is_local
    assert Store("/").exists("tmp") == Path("/tmp").exists()
    assert Store("/").path("etc") == "/etc"
    assert Store("").path("x") == Store(".").path("x") == str(tmp_path / "x")


def test_a_trailing_slash_is_nothing(tmp_path: Path) -> None:
    Store(f"{tmp_path}/a/").write("x", b"1")
    assert Store(f"{tmp_path}/a").url == Store(f"{tmp_path}/a/").url
    assert Store(tmp_path / "a").list() == ["x"]


def test_relative_and_file_urls_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("here").write("x", b"1")
    assert Store(f"file://{tmp_path}/here").read("x") == b"1"
    assert Store(f"file://{tmp_path}/here").is_local
    assert not Store("memory://x").is_local


def test_uploads_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "file"
    local.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    store = Store(f"memory://uploads/{os.getpid()}")
    assert store.upload_verified(local, "x", sha256)
    assert not store.upload_verified(local, "x", sha256)  # it is there
    store.write("x", b"damaged")
    assert store.upload_verified(local, "x", sha256)
    assert store.read("x") == b"content"

    put = Store.upload
    monkeypatch.setattr(Store, "upload", lambda self, path, name: (put(self, path, name), self.write(name, b"cut"))[1])
    with pytest.raises(UserError, match=r"memory://uploads/.*/y: differs"):
        store.upload_verified(local, "y", sha256)


def test_a_place_is_named_for_readers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert from_anywhere("data") == str(tmp_path / "data")
    for url in ("gone", "s3://bucket/data"):
        assert from_anywhere(url) == url
