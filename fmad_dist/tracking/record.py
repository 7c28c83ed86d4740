"""The local record of a run: metrics.jsonl, config.yaml and state beside the checkpoints. Local files are the truth."""

import json
import os
import time
from pathlib import Path
from typing import Any

from fmad_dist.errors import UserError

METRICS_NAME = "metrics.jsonl"


class RunRecord:
    """Files of `<output>/<name>/`. Only the main process writes."""

    def __init__(self, folder: Path, is_main: bool) -> None:
        self.folder = folder
        self.is_main = is_main
        if is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lines = open(folder / METRICS_NAME, "a")  # noqa: SIM115  # open as long as the run
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another `output`.") from None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line {"step": ..., "time": Unix milliseconds, name: value}."""
        if self.is_main:
            self._lines.write(json.dumps({"step": step, "time": int(time.time() * 1000), **values}) + "\n")
            self._lines.flush()

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to another JSONL file of the run."""
        if self.is_main:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """After a resume from `step`: drop lines of later steps, which are about to be made again."""
        path = self.folder / METRICS_NAME
        if not self.is_main:
            return
        kept = [line for line in read_lines(path) if line["step"] <= step]
        self._lines.close()
        self.write(METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = open(path, "a")  # noqa: SIM115

    def write(self, name: str, text: str) -> None:
        """Replace a small file of the run atomically."""
        if self.is_main:
            scratch = self.folder / f".tmp-{name}"
            scratch.write_text(text)
            os.replace(scratch, self.folder / name)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut by a crash is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
