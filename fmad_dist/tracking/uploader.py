"""Copy metrics.jsonl to MLflow in the background: training writes the file, a thread sends what the server lacks.

The file is the queue, so nothing is lost however long the server is away, and memory is bounded by one request. What
the server has already is asked of the server: a line goes out if its step is beyond the run's last one. A request is
taken whole or not at all, and a repeated one changes nothing, because a point is named by step, value and the time
that stands in the line. So every point is there exactly once, after crashes of either side too.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmad_dist.base.console import warn
from fmad_dist.base.errors import first_line

PACE_S = 2.0  # between two requests of a healthy server
LONGEST_PAUSE_S = 60.0  # between two tries of a server that fails
METRICS_PER_REQUEST = 1000  # MLflow's limit
MARKER = "samples"  # a metric of every line; its last step says how far the server is
LOUD_OUTAGES = 5  # later ones are only counted

Line = dict[str, Any]


class Uploader:
    """Send the lines of one run from a thread of its own; nothing here blocks or raises in the training thread."""

    def __init__(self, client: Any, run_id: str, path: Path) -> None:
        self.client = client
        self.run_id = run_id
        self.path = path
        self.outages = 0
        self._failing = False
        self._status: str | None = None  # to close the run with, once all lines are there
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fmad-mlflow", daemon=True)

    def start(self) -> "Uploader":
        self._thread.start()
        return self

    def finish(self, status: str, patience_s: float) -> bool:
        """Send the rest and close the run; returns False if that was given up after `patience_s` seconds."""
        self._status = status
        self._stop.set()
        all_sent = self._done.wait(patience_s)
        self._done.set()
        return all_sent

    def _work(self) -> None:
        pause, lines = PACE_S, LineReader(self.path)
        opened = False
        while not self._done.is_set():
            try:
                if not opened:
                    lines.step = last_step(self.client, self.run_id)
                    self.client.update_run(self.run_id, status="RUNNING")
                    opened = True
                send(self.client, self.run_id, lines)
                self._came_back()
                pause = PACE_S
                if self._status is not None:
                    self.client.set_terminated(self.run_id, self._status)
                    self._done.set()
            except Exception as error:  # whatever a server or its client can think of must not end this thread
                self._went_away(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            wait = pause if self._failing else PACE_S
            if self._stop.wait(wait * random.uniform(0.75, 1.0)) and self._failing:
                time.sleep(min(wait, PACE_S))  # the end is near: try often until the patience is over

    def _went_away(self, error: Exception) -> None:
        if not self._failing:
            self.outages += 1
            if self.outages <= LOUD_OUTAGES:
                reason = first_line(error)
                warn(f"MLflow does not take metrics ({reason}); the local record goes on and they follow later.")
        self._failing = True

    def _came_back(self) -> None:
        if self._failing and self.outages <= LOUD_OUTAGES:
            print("MLflow takes metrics again and has all of them", file=sys.stderr, flush=True)
        self._failing = False


class LineReader:
    """Read whole lines of a metrics.jsonl beyond a step. `RunRecord.rewind` may replace the file by a shorter one."""

    def __init__(self, path: Path, step: int = -1) -> None:
        self.path = path
        self.step = step  # lines up to here were taken
        self._file_id = -1
        self._offset = self._read_to = 0

    def read(self, max_metrics: int = METRICS_PER_REQUEST) -> list[Line]:
        """Return the next lines with at most `max_metrics` values, at least one line if there is one, the same again
        until `take` is called."""
        found: list[Line] = []
        room = max_metrics
        with open(self.path, "rb") as file:
            file_id = os.fstat(file.fileno()).st_ino
            if file_id != self._file_id:  # another file under the name: from its start
                self._file_id, self._offset = file_id, 0
            self._read_to = file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # being written
                line = json.loads(raw)
                if line["step"] > self.step:
                    room -= len(line)
                    if found and room < 0:
                        break
                    found.append(line)
                self._read_to += len(raw)
        return found

    def take(self, lines: Sequence[Line]) -> None:
        """Go on behind the lines that `read` returned last."""
        self._offset = self._read_to
        self.step = lines[-1]["step"]


def send(client: Any, run_id: str, lines: LineReader) -> int:
    """Send all new lines, request by request, and return their number. Raises whatever the client raises."""
    count = 0
    while new := lines.read():
        points = [one for line in new for one in metrics_at(line["step"], line.get("time", 0), line)]
        client.log_batch(run_id, points)  # the first versions of fmad wrote no time
        lines.take(new)
        count += len(new)
    return count


def metrics_at(step: int, time_ms: int, values: Mapping[str, float]) -> list[Any]:
    """The values, without `step` and `time` themselves, as MLflow's metrics at a step and a Unix time."""
    from mlflow.entities import Metric

    return [Metric(name, value, time_ms, step) for name, value in values.items() if name not in ("step", "time")]


def last_step(client: Any, run_id: str) -> int:
    """Return the last step that the server has metrics of, -1 for none."""
    return max((point.step for point in client.get_metric_history(run_id, MARKER)), default=-1)
