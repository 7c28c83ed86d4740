"""The copy of a training run in MLflow: made, described by tags, continued, and read for people.

Only the main process talks to the server, and no step waits for it.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.process import ERROR_FILE
from fmad_dist.base.secrets import without_secrets
from fmad_dist.base.version import code_commit
from fmad_dist.config.files import flat_config
from fmad_dist.config.run import RunConfig
from fmad_dist.tracking.database import failures
from fmad_dist.tracking.record import METRICS_NAME, RunRecord
from fmad_dist.tracking.server import client_at, connect, full_uri, shown_uri, tracking_uri
from fmad_dist.tracking.uploader import LineReader, Uploader, last_step, metrics_at, send

NOTE_NAME = "tracking.json"  # which MLflow run belongs to this run, and how it ended
REGISTERED_NAME = "registered.json"  # the version that the run's detector became
PATIENCE_S = 30.0  # for the last metrics at the end of a job
PARAMS_AT_ONCE = 100  # MLflow's limit
LAUNCH_VARIABLES = ("SLURM_JOB_ID", "JOB_COMPLETION_INDEX", "TORCHELASTIC_RUN_ID")
MAX_TAG = 4900  # MLflow takes 5000 characters


class TrackedRun:
    """The MLflow run of a training run, continued on resume; a server that fails later never stops training."""

    def __init__(self, config: RunConfig, record: RunRecord) -> None:
        self.config = config
        self.record = record
        self.enabled = config.tracking.mlflow and record.is_main
        self.run_id: str | None = None
        self._client: Any = None
        self._uploader: Uploader | None = None

    def start(self, run_id: str | None, tags: Mapping[str, str] | None = None) -> None:
        """Go on with the run `run_id`, or make a new one; from then on metrics.jsonl is copied in the background.

        Raises:
            UserError: a new run cannot be made; said before training starts, not hours later.
        """
        if not self.enabled:
            return
        self._join(run_id, tags or {})
        self._note(None)
        self._uploader = Uploader(self._client, str(self.run_id), self.record.folder / METRICS_NAME).start()

    def close(self, status: str = "FINISHED", patience_s: float = PATIENCE_S) -> None:
        """Send the last metrics and mark the run as finished, or as "KILLED"; a resume opens it again."""
        if not self.enabled or self._uploader is None:
            return
        self._note(status)
        if not self._uploader.finish(status, patience_s):
            warn(f"MLflow has not got everything; metrics.jsonl has it. Later: fmad sync {self.record.folder}")

    def sync(self) -> int:
        """Send what the server lacks in the foreground, metrics and how the run ended; returns the number of lines.

        Raises:
            UserError: the server cannot be used, or the run has nothing to send.
        """
        path = self.record.folder / METRICS_NAME
        noted = self.noted()
        if not noted and not path.stat().st_size:
            raise UserError(f"{path}: empty, this run has not trained yet; start it with fmad train.")
        self._join(noted.get("run_id"), {})
        self._note(noted.get("status"))
        try:
            count = send(self._client, str(self.run_id), LineReader(path, last_step(self._client, str(self.run_id))))
            if noted.get("status"):
                self._client.set_terminated(self.run_id, noted["status"])
        except failures() as error:
            raise UserError(f"{self.record.folder}: MLflow does not take its metrics ({first_line(error)}).") from None
        return count

    def _join(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        """Find the MLflow run of this training, or make one. Raises UserError."""
        try:
            self._client = connect(tracking_uri(self.config))
            self.run_id = run_id or self._create(tags)
        except failures() as error:
            raise UserError(
                f"tracking.uri: the MLflow server {shown_uri(self.config)} cannot be used ({first_line(error)}); start "
                "it, correct the URI or set tracking.mlflow=false."
            ) from None

    def _create(self, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment(), run_name=self.config.name, tags=dict(tags))
        self._log_parameters(run.info.run_id)
        return str(run.info.run_id)

    def _experiment(self) -> str:
        """Return the id of the experiment, which is made if it is not there; another start may do so at the moment."""
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        try:
            return str(found.experiment_id if found else self._client.create_experiment(name, self._artifacts()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _log_parameters(self, run_id: str) -> None:
        from mlflow.entities import Param

        values = [Param(key, str(value)[:500]) for key, value in flat_config(self.config).items()]
        for start in range(0, len(values), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=values[start : start + PARAMS_AT_ONCE])

    def noted(self) -> dict[str, Any]:
        """Return `run_id` and `status` of the last start of this training, nothing if it was on another server."""
        path = self.record.folder / NOTE_NAME
        noted = json.loads(path.read_text()) if path.exists() else {}
        return noted if without_secrets(noted.get("uri", "")) == shown_uri(self.config) else {}

    def _note(self, status: str | None) -> None:
        note = {"uri": shown_uri(self.config), "run_id": self.run_id, "status": status}
        self.record.write(NOTE_NAME, json.dumps(note))

    def _artifacts(self) -> str | None:
        """Return the artifact folder for a sqlite file: beside the runs. A server has its own, so None."""
        if not tracking_uri(self.config).startswith("sqlite:"):
            return None
        path = (Path(self.config.output) / "mlartifacts").resolve()
        return Path(str(path).replace("%", "_")).as_uri()  # MLflow takes quotes off a path again and again


class AddedMetrics:
    """The MLflow run of a training that another job owns: metrics and tags are added, its status is left alone. A
    server that fails is a warning and stops nothing."""

    def __init__(self, uri: str | None, config: RunConfig, run_id: str) -> None:
        self.uri = uri or tracking_uri(config)
        self.run_id = run_id

    def add(self, step: int, values: dict[str, float], tags: dict[str, str]) -> bool:
        """Send metrics and tags; returns whether the server took them."""
        try:
            client = connect(self.uri)
            client.log_batch(self.run_id, metrics_at(step, int(time.time() * 1000), values))
            for key, value in tags.items():
                client.set_tag(self.run_id, key, value)
        except Exception as error:  # whatever a client or its database raises: the local record has it
            warn(f"MLflow at {self.uri} does not take step {step} ({first_line(error)}); the local record has it.")
            return False
        return True


def run_tags(environment: Mapping[str, Any], digests: Mapping[str, str], parent_run: str | None) -> dict[str, str]:
    """Return the tags; `environment` is the content of environment.json, `digests` the manifests' by dataset."""
    tags = {f"fmad.{name}": str(value) for name, value in environment.items() if name != "versions"}
    tags |= {f"fmad.version.{name}": str(value) for name, value in environment.get("versions", {}).items()}
    tags |= {f"fmad.manifest.{name}": digest for name, digest in digests.items()}
    tags |= {f"fmad.launcher.{name}": os.environ[name] for name in LAUNCH_VARIABLES if name in os.environ}
    tags["fmad.launcher"] = "fmad" if ERROR_FILE in os.environ else Path(sys.argv[0]).name  # or launcher/train.py
    commit = code_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    if parent_run:
        tags["mlflow.parentRunId"] = parent_run
    return {name: value[:MAX_TAG] for name, value in tags.items()}


class ServerStatus:
    """The MLflow run of a run directory that has one. Nothing is made, here or on the server."""

    def __init__(self, run: Path) -> None:
        note = json.loads((run / NOTE_NAME).read_text())
        self.where = f"run {note['run_id']} at {without_secrets(note['uri'])}"
        self.ended: str | None = note["status"]  # how the last start ended; None while it runs or after a kill
        noted = json.loads((run / REGISTERED_NAME).read_text()) if (run / REGISTERED_NAME).exists() else None
        self.version = f"models:/{noted['name']}/{noted['version']}" if noted else None  # that the detector became
        self.status, self.step, self.problem = "", -1, ""
        try:
            client = client_at(full_uri(note["uri"]))
            self.status = client.get_run(note["run_id"]).info.status
            self.step = last_step(client, note["run_id"])  # of the newest metrics that the server has
        except Exception as error:  # whatever a client or its database raises
            self.problem = first_line(error)

    def lacks(self, step: int) -> bool:
        """Whether the server answered and does not have the metrics up to `step`."""
        return not self.problem and self.step < step

    def lines(self, step: int) -> Iterator[str]:
        """What there is; `step` is that of the newest metrics in the local record."""
        if self.problem:
            yield f"{self.where} cannot be asked ({self.problem}); the local record is complete"
        else:
            yield f"{self.where}: {self.status}, metrics up to step {self.step} of {step}"
        yield f"registered as {self.version}" if self.version else "no version is registered"
