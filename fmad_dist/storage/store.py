"""A folder at any fsspec URL: atomic writes, byte ranges, and errors that name the URL.

Local paths and object stores behave the same: a name either holds complete bytes or does not exist. Local writes go to
a temporary name, are synced and renamed; object stores put whole objects. Filesystems are opened lazily and once per
process, because s3fs hangs when a filesystem is inherited across `fork`. While an object store is away, every
operation waits for it up to the store's patience.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.secrets import holds_secret
from fmad_dist.storage.conditional import put_if
from fmad_dist.storage.faults import explain, with_retries
from fmad_dist.storage.ranges import ByteRange, read_ranges
from fmad_dist.storage.scratch import is_passing, published

T = TypeVar("T")

PATIENCE_S = 30.0
_BLOCK = 8 << 20
_S3_CLIENT = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "retries": {"mode": "standard", "max_attempts": 2},  # the waiting is done here, where it can be seen
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file below a store."""

    name: str
    num_bytes: int
    modified: datetime  # UTC


class Store:
    """The folder at `url`. Names are relative to it and may contain `/`.

    Credentials come from the environment chain of the filesystem (profile, role, variables), never from the URL; when
    they expire they are taken from there again. Every method raises `UserError` naming the URL when the storage
    refuses, or does not answer for `patience_s` seconds.
    """

    def __init__(self, url: str | Path, patience_s: float = PATIENCE_S) -> None:
        trimmed = str(url).rstrip("/")
        self.url = str(url) if not trimmed or trimmed.endswith(":") else trimmed  # the root of a filesystem stays
        self.patience_s = patience_s
        self._opened_by = -1
        self._fs: Any = None
        self._root = ""
        _refuse_credentials(self.url)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "patience_s": self.patience_s, "_opened_by": -1, "_fs": None, "_root": ""}

    @property
    def fs(self) -> Any:
        if self._opened_by != os.getpid():
            self._open(anew=self._opened_by != -1)
        return self._fs

    def _open(self, anew: bool) -> None:
        """Open the filesystem; `anew` does not share another store's, and so reads the credentials again."""
        options: dict[str, Any] = {}
        if urlsplit(self.url).scheme in ("s3", "s3a", "gs", "gcs", "abfs", "az"):
            options["use_listings_cache"] = False  # other processes write too
        if urlsplit(self.url).scheme in ("s3", "s3a"):
            options["config_kwargs"] = _S3_CLIENT
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=anew, **options)
        except (ValueError, ImportError) as error:
            raise UserError(f"{self.url}: this URL cannot be opened ({first_line(error)}).") from None
        self._root = root.rstrip("/")
        self._opened_by = os.getpid()

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def child(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}", self.patience_s)

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def path(self, name: str = "") -> str:
        """The filesystem's own path of `name` (a local path for local stores)."""
        _ = self.fs  # opens the filesystem, which knows its root
        return f"{self._root}/{name}" if name else self._root or "/"

    def exists(self, name: str = "") -> bool:
        return self._tried(name, lambda: bool(self.fs.exists(self.path(name))))

    def is_file(self, name: str) -> bool:
        return self._tried(name, lambda: bool(self.fs.isfile(self.path(name))))

    def size(self, name: str) -> int:
        return self._tried(name, lambda: int(self.fs.size(self.path(name))))

    def modified(self, name: str) -> datetime:
        """When the object was written, UTC."""
        return self._tried(name, lambda: _modified(self.fs.info(self.path(name))))

    def open(self, name: str) -> Any:
        """A stream of the object's bytes, read ahead in blocks; close it."""
        return self._tried(name, lambda: self._opened(name))

    def read(self, name: str) -> bytes:
        return self._tried(name, lambda: bytes(self.fs.cat_file(self.path(name))))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of `name`; shorter only when the object is."""
        return self.read_ranges([ByteRange(name, start, stop)])[0]

    def read_ranges(self, wanted: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of every range, in order; neighbours in one object are one request, requests run side by side."""
        where = wanted[0].name if wanted else ""
        return self._tried(where, lambda: read_ranges(self.fs, self.path, wanted, self.is_local))

    def sha256(self, name: str) -> str:
        """Digest of the object's content, read in blocks."""

        def digest() -> str:
            with self._opened(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self._tried(name, digest)

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`, completely or not at all, replacing what was there."""
        self._put(name, lambda path: self.fs.pipe_file(path, data), lambda file: file.write_bytes(data))

    def write_if(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Put `data` at `name` only if it still holds `seen` (None: does not exist); returns whether it holds `data`.

        Of several processes with different data that saw the same, one gets True: by a lock, or a conditional put.
        """
        return self._tried(name, lambda: put_if(self.fs, self.path(name), data, seen, self.is_local))

    def upload(self, local: Path, name: str) -> None:
        """Copy the local file to `name`, completely or not at all."""
        self._put(name, lambda path: self.fs.put_file(str(local), path), lambda file: shutil.copyfile(local, file))

    def upload_verified(self, local: Path, name: str, sha256: str) -> bool:
        """Make `name` hold the local file, whose digest is given; False if it did already, and nothing was sent.

        What the storage holds afterwards is read back and compared by size and digest.

        Raises:
            UserError: it differs after the second attempt too.
        """
        num_bytes = local.stat().st_size
        for attempt in range(3):
            if self.exists(name) and self.size(name) == num_bytes and self.sha256(name) == sha256:
                return attempt > 0
            if attempt < 2:
                self.upload(local, name)
        raise UserError(f"{self.url_of(name)}: differs from what was uploaded, twice; the storage damages data.")

    def list(self, folder: str = "") -> list[str]:
        """All names below `folder`, recursively, sorted, without locks and temporary files of unfinished writes."""
        return [entry.name for entry in self.entries(folder)]

    def entries(self, folder: str = "") -> Sequence[Entry]:
        """Like `list`, with sizes and times. Links to local folders are followed, but never into a circle."""
        found = self._tried(folder, lambda: self._found(folder))
        prefix = f"{self._root}/"
        entries = [
            Entry(path.removeprefix(prefix), int(info["size"] or 0), _modified(info)) for path, info in found.items()
        ]
        shown = [entry for entry in entries if not is_passing(entry.name.rsplit("/", 1)[-1])]
        return sorted(shown, key=lambda entry: entry.name)

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        """What is known of every file below a folder, by its path."""
        if not self.is_local:
            return dict(self.fs.find(self.path(folder), detail=True))
        files = {}
        for path in local_files(self.path(folder)):
            with suppress(FileNotFoundError):  # gone meanwhile, or a link to nothing
                status = os.stat(path)
                files[path] = {"size": status.st_size, "mtime": status.st_mtime}
        return files

    def remove(self, name: str) -> None:
        self._tried(name, lambda: self.fs.rm(self.path(name), recursive=True))

    def remove_all(self, names: Sequence[str]) -> None:
        """Remove files in few requests; some may be gone already, because several processes may want the same."""
        if not names:
            return
        self._tried(names[0], lambda: _remove_together(self.fs, [self.path(name) for name in names]))

    def remove_empty_folders(self, folder: str) -> None:
        """Local stores only, others have no folders: `folder` and what is below it, as far as nothing is in it."""
        root = Path(self.path(folder))
        for path in [*sorted(root.rglob("*"), reverse=True), root]:
            with suppress(OSError):
                path.rmdir()

    def abort_uploads(self, started_before: datetime) -> int:
        """Give up multipart uploads below this store that a killed process left on S3; returns how many there were."""
        scheme, _, path = self.url.partition("://")
        if scheme not in ("s3", "s3a"):
            return 0
        bucket, _, prefix = path.partition("/")

        def abort() -> int:
            num_aborted = 0
            marker: dict[str, str] = {}
            while True:
                where = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **marker}
                answer = self.fs.call_s3("list_multipart_uploads", **where)
                for one in answer.get("Uploads", []):
                    if one["Initiated"] <= started_before:
                        upload = {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
                        self.fs.call_s3("abort_multipart_upload", **upload)
                        num_aborted += 1
                if not answer.get("IsTruncated"):
                    return num_aborted
                marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

        return self._tried("", abort)

    def _opened(self, name: str) -> Any:
        return self.fs.open(self.path(name), "rb", block_size=_BLOCK, cache_type="readahead")

    def _put(self, name: str, remote: Callable[[str], object], local: Callable[[Path], object]) -> None:
        """Write to the path of an object store, or to a local scratch file that then gets the name."""

        def put() -> None:
            if not self.is_local:
                remote(self.path(name))
                return
            with published(Path(self.path(name))) as scratch:
                local(scratch)

        self._tried(name, put)

    def _tried(self, name: str, operation: Callable[[], T]) -> T:
        where = self.url_of(name) if name else self.url
        try:
            if self.is_local:
                return operation()
            return with_retries(operation, where, self.patience_s, renew=lambda: self._open(anew=True))
        except UserError:
            raise
        except Exception as error:
            explained = explain(error, where)
            if explained is None:
                raise
            raise explained from error


def local_files(root: str) -> Iterator[str]:
    """The files at and below a local path; links to folders are followed, but never into a circle."""
    if os.path.isfile(root):
        yield root
    above: dict[str, frozenset[str]] = {root: frozenset([os.path.realpath(root)])}
    for folder, folders, files in os.walk(root, followlinks=True):
        yield from (os.path.join(folder, name) for name in files)
        circles = above[folder]
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in circles:
                folders.remove(name)
            above[path] = circles | {real}


def _remove_together(fs: Any, paths: list[str]) -> None:
    if getattr(fs, "async_impl", False):
        fs.rm(paths)  # not recursive, so nothing is looked up, and up to a thousand go in one request
        return
    for path in paths:
        with suppress(FileNotFoundError):
            fs.rm_file(path)


def from_anywhere(url: str) -> str:
    """The same place for a reader in another working directory; a path that is not there stays as it is."""
    return str(Path(url).resolve()) if "://" not in url and Path(url).exists() else url


def use_endpoint(url: str | None) -> None:
    """Send the S3 requests of this process, and of those it starts, to `url` (None: as the environment says).

    Raises:
        UserError: not an http(s) URL, or one that holds credentials.
    """
    if url is None:
        return
    _refuse_credentials(url)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UserError(f"endpoint URL {url!r}: write it as https://host or http://host:port.")
    os.environ["AWS_ENDPOINT_URL"] = url


def _refuse_credentials(url: str) -> None:
    parts = urlsplit(url) if "://" in url else None
    if parts and holds_secret(url):
        raise UserError(
            f"{parts.scheme}://...{parts.path.rpartition('@')[2]}: a URL must not hold credentials, because URLs are "
            "logged; put them into the environment (AWS_ACCESS_KEY_ID, a profile or a role)."
        )


def _modified(info: dict[str, Any]) -> datetime:
    """When a file was last written, by the name that its filesystem uses for it."""
    value = next((info[key] for key in ("LastModified", "mtime", "updated", "created") if info.get(key)), None)
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if value is None:
        return datetime.now(UTC)
    return value if value.tzinfo else value.replace(tzinfo=UTC)
