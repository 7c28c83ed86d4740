"""Compare and put: of several writers that saw the same content, one wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmad_dist.storage.faults import code_of
from fmad_dist.storage.scratch import folder_lock, published


def put_if(fs: Any, path: str, data: bytes, seen: bytes | None, is_local: bool) -> bool:
    """Write `data` if `path` still holds `seen` (None: does not exist); returns whether it holds `data` then.

    By a lock locally, by conditional puts on S3. Other object stores get a comparison just before the put, which leaves
    a moment in which a second writer is not noticed; what they write is complete in either case.
    """
    if is_local:
        return _put_local(Path(path), data, seen)
    if seen is None:
        written = _unless_changed(lambda: fs.pipe_file(path, data, mode="create"))
    else:
        condition = _condition(fs, path)
        unchanged = fs.exists(path) and fs.cat_file(path) == seen
        written = unchanged and _unless_changed(lambda: fs.pipe_file(path, data, **condition))
    # A refusal may answer the second try of a put whose first one arrived, so what counts is the content.
    return written or (fs.exists(path) and bool(fs.cat_file(path) == data))


def _condition(fs: Any, path: str) -> dict[str, str]:
    """Arguments that make a put fail when the object changed; taken before its content is compared."""
    protocols = fs.protocol if isinstance(fs.protocol, (tuple, list)) else (fs.protocol,)
    if "s3" not in protocols or not fs.exists(path):
        return {}
    return {"IfMatch": fs.info(path)["ETag"].strip('"')}  # Ceph does not know its own tag with quotes


def _put_local(path: Path, data: bytes, seen: bytes | None) -> bool:
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
