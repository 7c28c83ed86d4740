"""Compare and put: of several writers that saw the same content, one wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmad_dist.storage.scratch import folder_lock, published


class Conditional:
    """Conditional writes on one filesystem: by a lock locally, by conditional puts on S3.

    Other object stores get a comparison just before the put, which leaves a moment in which a second writer is not
    noticed; what they write is complete in either case.
    """

    def __init__(self, fs: Any, is_local: bool) -> None:
        self.fs = fs
        self.is_local = is_local

    def put(self, path: str, data: bytes, seen: bytes | None) -> bool:
        """Write `data` if `path` still holds `seen` (None: does not exist); returns whether it was written."""
        if self.is_local:
            return self._put_local(Path(path), data, seen)
        if seen is None:
            return _unless_changed(lambda: self.fs.pipe_file(path, data, mode="create"))
        condition = self._condition(path)
        if not self.fs.exists(path) or self.fs.cat_file(path) != seen:
            return False
        return _unless_changed(lambda: self.fs.pipe_file(path, data, **condition))

    def _condition(self, path: str) -> dict[str, str]:
        """Arguments that make a put fail when the object changed; taken before its content is compared."""
        protocols = self.fs.protocol if isinstance(self.fs.protocol, (tuple, list)) else (self.fs.protocol,)
        if "s3" not in protocols or not self.fs.exists(path):
            return {}
        return {"IfMatch": self.fs.info(path)["ETag"]}

    def _put_local(self, path: Path, data: bytes, seen: bytes | None) -> bool:
        with folder_lock(path.parent):
            if (path.read_bytes() if path.exists() else None) != seen:
                return False
            with published(path) as scratch:
                scratch.write_bytes(data)
            return True


def _unless_changed(put: Callable[[], object]) -> bool:
    try:
        put()
    except FileExistsError:
        return False
    except OSError as error:
        if "PreconditionFailed" in str(error) or "pre-conditions" in str(error).lower():
            return False
        raise
    return True
