"""What was found, in the run directory: one line per checkpoint in `follow.jsonl`, the best one in `follow.json`.

The files are the truth; MLflow gets a copy, and what it missed when it comes back.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig
from fmad_dist.defects.photograph import KINDS
from fmad_dist.follow.synthetic import FORMAT
from fmad_dist.metrics.results import METRIC_NAMES, Results
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of
from fmad_dist.tracking.record import read_lines
from fmad_dist.tracking.runs import AddedMetrics
from fmad_dist.training.checkpoint import Checkpoint, Checkpoints

LINES_NAME, BEST_NAME = "follow.jsonl", "follow.json"
WHAT = "held-out normals with synthetic defects; not test results"
BEST_BY = "aupro"


class FollowRecord:
    """The lines of a folder. A step has one line: evaluated again, it replaces the old one."""

    def __init__(self, folder: Path, per_class: int) -> None:
        self.store = Store(folder)
        self.per_class = per_class
        self.lines: dict[int, dict[str, Any]] = {}
        if (folder / LINES_NAME).exists():
            self.lines = {line["step"]: line for line in read_lines(folder / LINES_NAME)}

    def has(self, checkpoint: Checkpoint) -> bool:
        """Whether exactly this checkpoint was evaluated on exactly this set of images."""
        line = self.lines.get(checkpoint.state.step)
        return line is not None and (line["checkpoint"], line["set"]) == self._keys(checkpoint)

    def add(self, checkpoint: Checkpoint, results: Results, seconds: float) -> dict[str, Any]:
        """Write the line of a checkpoint; returns it."""
        step, (digest, images) = checkpoint.state.step, self._keys(checkpoint)
        labels = [row.label for row in results.scores]
        self.lines[step] = {
            "step": step,
            "what": WHAT,
            "num_normals": labels.count(0),
            "num_defects": labels.count(1),
            "mean": results.mean.metrics.by_name(),
            "kinds": {kind: _mean_of_kind(results, kind) for kind in KINDS},
            "classes": {name: found.metrics.by_name() for name, found in results.classes.items()},
            "checkpoint": digest,
            "set": images,
            "seconds": round(seconds, 1),
            "tracked": False,
        }
        self._write()
        return self.lines[step]

    def best(self) -> dict[str, Any] | None:
        """The line with the highest mean AUPRO of those on the images of the newest one, the earliest of equals."""
        if not self.lines:
            return None
        newest = self.lines[max(self.lines)]["set"]
        same = [line for _, line in sorted(self.lines.items()) if line["set"] == newest]
        defined = [line for line in same if line["mean"][BEST_BY] is not None]
        return max(defined, key=lambda line: line["mean"][BEST_BY], default=None)

    def copy_to(self, tracked: AddedMetrics) -> None:
        """Send what the server does not have; on failure it stays due."""
        best = self.best()
        for step, line in sorted(self.lines.items()):
            if line["tracked"]:
                continue
            values = {f"synthetic/{name}": value for name, value in line["mean"].items() if value is not None}
            tags = {"synthetic.best_step": str(best["step"])} if best else {}
            if not tracked.add(step, values, tags):
                break
            line["tracked"] = True
        self._write()

    def _keys(self, checkpoint: Checkpoint) -> tuple[str, str]:
        """What stands for the weights, and for everything else that the numbers depend on."""
        state = checkpoint.state
        parts = ("features", "scorer", "protocol")
        facts = {"format": FORMAT, "per_class": self.per_class, "stream": state.plan_digest}
        return checkpoint.digest[:16], key_of(facts | {name: state.config.get(name) for name in parts})

    def _write(self) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for _, line in sorted(self.lines.items()))
        self.store.write(LINES_NAME, text.encode())
        best = self.best()
        if best is not None:
            body = {"what": WHAT, "best_by": BEST_BY, "step": best["step"], "mean": best["mean"]}
            self.store.write(BEST_NAME, (json.dumps(body, indent=1) + "\n").encode())


def best_of(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's `follow.json`: `step`, `best_by`, `mean`; None if no checkpoint was evaluated."""
    path = folder / BEST_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def record_folder(run: str, out: str | None) -> Path:
    """Where the record of a run goes: `out`, else the run directory itself, which the training may not have made yet.

    Raises:
        UserError: the run is given by its checkpoints alone, and there is no `out`.
    """
    if out is not None:
        return Path(out)
    store = Store(run)
    if store.is_local and (store.exists("config.yaml") or not Checkpoints(run).steps()):
        return Path(store.path())
    raise UserError(f"--out: {run} is not a run directory; name a folder for {LINES_NAME}.")


def tracked_run(folder: Path, config: RunConfig, run_id: str | None) -> AddedMetrics | None:
    """The MLflow run of a training, if it has one: as its run directory says, else as its checkpoint does."""
    if not config.tracking.mlflow:
        return None
    note = folder / "tracking.json"
    known: Mapping[str, str] = json.loads(note.read_text()) if note.exists() else {}
    found = known.get("run_id", run_id)
    return AddedMetrics(known.get("uri"), config, found) if found else None


def _mean_of_kind(results: Results, kind: str) -> dict[str, float | None]:
    """The unweighted mean over the classes that define a metric for this kind of defect."""
    found = [one.defects[kind].metrics.by_name() for one in results.classes.values() if kind in one.defects]
    columns = {name: [value for one in found if (value := one[name]) is not None] for name in METRIC_NAMES}
    return {name: math.fsum(column) / len(column) if column else None for name, column in columns.items()}
