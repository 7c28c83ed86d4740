"""Compare and put: of several writers that saw the same content, one wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmad_dist.storage.faults import code_of
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
        """Write `data` if `path` still holds `seen` (None: does not exist); returns whether it holds `data` then."""
        if self.is_local:
            return self._put_local(Path(path), data, seen)
        if seen is None:
            written = _unless_changed(lambda: self.fs.pipe_file(path, data, mode="create"))
        else:
            condition = self._condition(path)
            unchanged = self.fs.exists(path) and self.fs.cat_file(path) == seen
            written = unchanged and _unless_changed(lambda: self.fs.pipe_file(path, data, **condition))
        # A refusal may answer the second try of a put whose first one arrived, so what counts is the content.
        return written or (self.fs.exists(path) and bool(self.fs.cat_file(path) == data))

    def _condition(self, path: str) -> dict[str, str]:
        """Arguments that make a put fail when the object changed; taken before its content is compared."""
        protocols = self.fs.protocol if isinstance(self.fs.protocol, (tuple, list)) else (self.fs.protocol,)
        if "s3" not in protocols or not self.fs.exists(path):
            return {}
        return {"IfMatch": self.fs.info(path)["ETag"].strip('"')}  # Ceph does not know its own tag with quotes

    def _put_local(self, path: Path, data: bytes, seen: bytes | None) -> bool:
        with folder_lock(path.parent):
            found = path.read_bytes() if path.exists() else None
            if found != seen:
                return found == data
            with published(path) as scratch:
                scratch.write_bytes(data)
            return True


def _unless_changed(put: Callable[[], object]) -> bool:
    try:
        put()
    except FileExistsError:
        return False
    except OSError as error:
        if code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
            return False
        raise
    return True
