"""A folder at any fsspec URL: atomic writes, byte ranges, and errors that name the URL.

Local paths and object stores behave the same: a name either holds complete bytes or does not exist. Local writes go to
a temporary name, are synced and renamed; object stores put whole objects. Filesystems are opened lazily and once per
process, because s3fs hangs when a filesystem is inherited across `fork`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fmad_dist.errors import UserError, first_line

TEMPORARY_PREFIX = ".tmp-"


class Store:
    """The folder at `url`. Names are relative to it and may contain `/`.

    Credentials come from the environment chain of the filesystem (profile, role, variables), never from the URL.
    Every method raises `UserError` naming the URL when the storage refuses.
    """

    def __init__(self, url: str | Path) -> None:
        trimmed = str(url).rstrip("/")
        self.url = str(url) if not trimmed or trimmed.endswith(":") else trimmed  # the root of a filesystem stays
        self._opened_by = -1
        self._fs: Any = None
        self._root = ""

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened_by": -1, "_fs": None, "_root": ""}

    @property
    def fs(self) -> Any:
        if self._opened_by != os.getpid():
            try:
                self._fs, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=self._opened_by != -1)
            except (ValueError, ImportError) as error:
                raise UserError(f"{self.url}: this URL cannot be opened ({first_line(error)}).") from None
            self._root = root.rstrip("/")
            self._opened_by = os.getpid()
        return self._fs

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def child(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}")

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def path(self, name: str = "") -> str:
        """The filesystem's own path of `name` (a local path for local stores)."""
        _ = self.fs  # opens the filesystem, which knows its root
        return f"{self._root}/{name}" if name else self._root or "/"

    def exists(self, name: str = "") -> bool:
        with self._explained(name):
            return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        with self._explained(name):
            return int(self.fs.size(self.path(name)))

    def read(self, name: str) -> bytes:
        with self._explained(name):
            return bytes(self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of `name`; shorter only when the object is."""
        with self._explained(name):
            if self.is_local:
                with open(self.path(name), "rb", buffering=0) as file:
                    return os.pread(file.fileno(), stop - start, start)
            return bytes(self.fs.cat_file(self.path(name), start=start, end=stop))

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`, completely or not at all, replacing what was there."""
        with self._explained(name):
            if not self.is_local:
                self.fs.pipe_file(self.path(name), data)
                return
            with self._temporary_file(name) as temporary:
                temporary.write_bytes(data)

    def upload(self, local: Path, name: str) -> None:
        """Copy the local file to `name`, completely or not at all."""
        with self._explained(name):
            if not self.is_local:
                self.fs.put_file(str(local), self.path(name))
                return
            with self._temporary_file(name) as temporary:
                shutil.copyfile(local, temporary)

    def list(self, folder: str = "") -> list[str]:
        """All names below `folder`, recursively, sorted, without temporary files of unfinished writes."""
        with self._explained(folder):
            found = self.fs.find(self.path(folder))
            prefix = f"{self._root}/"
        names = [path.removeprefix(prefix) for path in found]
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX))

    def remove(self, name: str) -> None:
        with self._explained(name):
            self.fs.rm(self.path(name), recursive=True)

    @contextmanager
    def _temporary_file(self, name: str) -> Iterator[Path]:
        """A scratch path in the folder of `name` that is synced and renamed to it when the block succeeds."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=target.parent)
        os.close(handle)
        try:
            yield Path(scratch)
            with open(scratch, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(scratch, 0o644)
            os.replace(scratch, target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        where = self.url_of(name) if name else self.url
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{where}: not found; check the path, and the bucket's name for object storage.") from None
        except PermissionError as error:
            hint = "check the credentials in the environment" if "://" in where else "check the permissions"
            raise UserError(f"{where}: access denied ({first_line(error)}); {hint}.") from None
        except (IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{where}: {first_line(error)}; a folder was expected where a file is.") from None
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiohttp", "aiobotocore")):
                raise UserError(f"{where}: the storage failed ({first_line(error)}).") from error
            raise
