"""A training run's copy in MLflow. Only the main process talks to the server, and training never waits for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.config_files import flat_config
from fmad_dist.errors import UserError, first_line
from fmad_dist.tracking.record import METRICS_NAME, RunRecord
from fmad_dist.tracking.uploader import LineReader, Uploader, last_step, send, warn

NOTE_NAME = "tracking.json"  # which MLflow run belongs to this run, and how it ended
PATIENCE_S = 30.0  # for the last metrics at the end of a job
PARAMS_AT_ONCE = 100  # MLflow's limit


def tracking_uri(config: RunConfig) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else a sqlite file beside the runs."""
    import os

    path = (Path(config.output) / "mlflow.db").resolve()
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


class TrackedRun:
    """One MLflow run per training run, continued on resume; a server that fails later never stops training."""

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

    def finish(self, detector: Path) -> None:
        """Register the detector; problems are said with the command that repairs them."""
        if not self.enabled:
            return
        try:
            version = self.register(detector)
            print(f"registered models:/{self.config.tracking.model_name}/{version} (alias candidate)", flush=True)
        except UserError as error:
            warn(f"{error} Later: fmad sync {detector.parent}")

    def close(self, status: str = "FINISHED", patience_s: float = PATIENCE_S) -> None:
        """Send the last metrics and mark the run as finished, or as "KILLED"; a resume opens it again."""
        if not self.enabled or self._uploader is None:
            return
        self._note(status)
        if not self._uploader.finish(status, patience_s):
            warn(f"MLflow has not got everything; metrics.jsonl has it. Later: fmad sync {self.record.folder}")

    def sync(self) -> int:
        """Send what the server lacks, in the foreground: metrics, how the run ended; returns the number of lines.

        Raises:
            UserError: the server cannot be used, or the run has nothing to send.
        """
        from mlflow.exceptions import MlflowException

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
        except (MlflowException, OSError) as error:
            raise UserError(f"{self.record.folder}: MLflow does not take its metrics ({first_line(error)}).") from None
        return count

    def register(self, detector: Path) -> str:
        """A new version of the registered model from a detector folder; noted in `registered.json`.

        Raises:
            UserError: the server refuses.
        """
        from fmad_dist.registry.register import register_detector

        version = register_detector(detector, self.config, str(self.run_id))
        name = self.config.tracking.model_name
        self.record.write("registered.json", json.dumps({"name": name, "version": version}))
        return version

    def _join(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        """Find the MLflow run of this training, or make one. Raises UserError."""
        from mlflow.exceptions import MlflowException

        uri = tracking_uri(self.config)
        try:
            self._client = connect(uri)
            self.run_id = run_id or self._create(tags)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"tracking.uri: the MLflow server {uri} cannot be used ({first_line(error)}); start it, correct "
                "the URI or set tracking.mlflow=false."
            ) from None

    def _create(self, tags: Mapping[str, str]) -> str:
        name = self.config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name, self._artifacts())
        run = self._client.create_run(experiment, run_name=self.config.name, tags=dict(tags))
        self._log_parameters(run.info.run_id)
        return str(run.info.run_id)

    def _log_parameters(self, run_id: str) -> None:
        from mlflow.entities import Param

        values = [Param(key, str(value)[:500]) for key, value in flat_config(self.config).items()]
        for start in range(0, len(values), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=values[start : start + PARAMS_AT_ONCE])

    def noted(self) -> dict[str, Any]:
        """`run_id` and `status` of the last start of this training, empty if it was on another server."""
        path = self.record.folder / NOTE_NAME
        noted = json.loads(path.read_text()) if path.exists() else {}
        return noted if noted.get("uri") == tracking_uri(self.config) else {}

    def _note(self, status: str | None) -> None:
        note = {"uri": tracking_uri(self.config), "run_id": self.run_id, "status": status}
        self.record.write(NOTE_NAME, json.dumps(note))

    def _artifacts(self) -> str | None:
        """Beside a sqlite file, artifacts go to the runs' folder; a real server knows its own place."""
        if not tracking_uri(self.config).startswith("sqlite:"):
            return None
        return (Path(self.config.output) / "mlartifacts").resolve().as_uri()


class AddedMetrics:
    """The MLflow run of a training that another job owns: metrics and tags are added to it, its status is left alone.
    A server that fails is reported and stops nothing."""

    def __init__(self, uri: str | None, config: RunConfig, run_id: str) -> None:
        self.uri = uri or tracking_uri(config)
        self.run_id = run_id

    def add(self, step: int, values: dict[str, float], tags: dict[str, str]) -> bool:
        """Whether the server took them."""
        try:
            client = connect(self.uri)
            client.log_batch(self.run_id, _metrics(step, values))
            for key, value in tags.items():
                client.set_tag(self.run_id, key, value)
        except Exception as error:  # whatever a client or its database raises: the local record has it
            warn(f"MLflow at {self.uri} does not take step {step} ({first_line(error)}); the local record has it.")
            return False
        return True


def _metrics(step: int, values: dict[str, float]) -> list[Any]:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def connect(uri: str) -> Any:
    """An MlflowClient on `uri`, see `use_server`; a sqlite file is made if it is not there."""
    import mlflow

    use_server(uri)
    return mlflow.MlflowClient(uri, uri)


def use_server(uri: str) -> None:
    """Make MLflow use `uri`, leave the terminal to us (no migration log, no bars for small files) and give up on a
    hanging server after a minute; MLflow's own settings wait for a quarter of an hour."""
    import logging
    import os

    settings = {"ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "HTTP_REQUEST_TIMEOUT": "20", "HTTP_REQUEST_MAX_RETRIES": "2"}
    for name, value in settings.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
