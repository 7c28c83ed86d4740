"""Write and read the record of a run: metrics.jsonl, config.yaml and other small files, of which MLflow gets a copy."""

import errno
import json
import os
import time
from io import RawIOBase
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError, writing
from fmad_dist.storage.scratch import published

METRICS_NAME = "metrics.jsonl"


class RunRecord:
    """The small files of `<output>/<name>/`. Only the main process writes."""

    def __init__(self, folder: Path, is_main: bool) -> None:
        self.folder = folder
        self.is_main = is_main
        if is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lines = open(folder / METRICS_NAME, "ab", buffering=0)  # noqa: SIM115  # as long as the run
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another `output`.") from None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line {"step": ..., "time": Unix milliseconds, name: value}."""
        if self.is_main:
            line = {"step": step, "time": int(time.time() * 1000), **values}
            _append(self.folder / METRICS_NAME, self._lines, line)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to another JSONL file of the run."""
        if self.is_main:
            with writing(self.folder / name), open(self.folder / name, "ab", buffering=0) as file:
                _append(self.folder / name, file, line)

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps than `step`, which a resume is about to make again."""
        path = self.folder / METRICS_NAME
        if not self.is_main:
            return
        kept = [line for line in read_lines(path) if line["step"] <= step]
        self._lines.close()
        self.write(METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, name: str, text: str) -> None:
        """Replace a small file of the run atomically."""
        if self.is_main:
            with writing(self.folder / name), published(self.folder / name) as scratch:
                scratch.write_text(text)


def _append(path: Path, file: RawIOBase, line: dict[str, Any]) -> None:
    """Write a line completely, or not at all if the disk is full (UserError)."""
    with writing(path):
        length = os.fstat(file.fileno()).st_size
        data = (b"\n" if _is_torn(path) else b"") + json.dumps(line).encode() + b"\n"
        try:
            if file.write(data) != len(data):  # there was room for a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise


def _is_torn(path: Path) -> bool:
    """Whether a crash has cut the last line."""
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file; a line that a crash has cut is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
