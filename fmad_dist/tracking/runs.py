"""A training run's copy in MLflow. Only the main process talks to the server."""

import json
import sys
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.config_files import flat_config
from fmad_dist.errors import UserError, first_line
from fmad_dist.tracking.record import RunRecord


def tracking_uri(config: RunConfig) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else a sqlite file beside the runs."""
    import os

    path = (Path(config.output) / "mlflow.db").resolve()
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


class TrackedRun:
    """One MLflow run per training run, continued on resume. A failing server is reported and never stops training."""

    def __init__(self, config: RunConfig, record: RunRecord) -> None:
        self.config = config
        self.record = record
        self.enabled = config.tracking.mlflow and record.is_main
        self.run_id: str | None = None
        self.lost_batches = 0
        self._client: Any = None

    def start(self, run_id: str | None) -> None:
        """Open the run `run_id`, or a new one.

        Raises:
            UserError: the server cannot be used; said before training starts, not hours later.
        """
        if not self.enabled:
            return
        from mlflow.exceptions import MlflowException

        uri = tracking_uri(self.config)
        try:
            self._client = connect(uri)
            self.run_id = run_id or self._create()
            self._client.update_run(self.run_id, status="RUNNING")
        except (MlflowException, OSError) as error:
            raise UserError(
                f"tracking.uri: the MLflow server {uri} cannot be used ({first_line(error)}); start it, correct "
                "the URI or set tracking.mlflow=false."
            ) from None
        self.record.write("tracking.json", json.dumps({"uri": uri, "run_id": self.run_id}))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if not self.enabled:
            return
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self.run_id, _metrics(step, values))
        except MlflowException as error:
            self.lost_batches += 1
            if self.lost_batches == 1:
                _warn(f"MLflow does not take metrics ({first_line(error)}); the local record goes on.")

    def finish(self, detector: Path) -> None:
        """Register the detector and close the run; problems are said with the command that repairs them."""
        if not self.enabled:
            return
        try:
            version = self.register(detector)
            print(f"registered models:/{self.config.tracking.model_name}/{version} (alias candidate)", flush=True)
        except UserError as error:
            _warn(f"{error} Later: fmad registry register --run {detector.parent}")
        if self.lost_batches:
            _warn(f"{self.lost_batches} metric records did not reach MLflow; metrics.jsonl has them all.")

    def close(self, status: str = "FINISHED") -> None:
        """Mark the run as finished, or as "KILLED"; a resume opens it again."""
        if not self.enabled:
            return
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(self.run_id, status)
        except MlflowException as error:
            _warn(f"MLflow does not close the run ({first_line(error)}).")

    def register(self, detector: Path) -> str:
        """A new version of the registered model from a detector folder; noted in `registered.json`.

        Raises:
            UserError: the server refuses.
        """
        from fmad_dist.tracking.registry import register_detector

        version = register_detector(detector, self.config, str(self.run_id))
        name = self.config.tracking.model_name
        self.record.write("registered.json", json.dumps({"name": name, "version": version}))
        return version

    def _create(self) -> str:
        name = self.config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name, self._artifacts())
        run = self._client.create_run(experiment, run_name=self.config.name)
        from mlflow.entities import Param

        params = [Param(key, str(value)[:500]) for key, value in flat_config(self.config).items()]
        self._client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

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
        import os

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # what fails now is sent with the next step
        try:
            client = connect(self.uri)
            client.log_batch(self.run_id, _metrics(step, values))
            for key, value in tags.items():
                client.set_tag(self.run_id, key, value)
        except Exception as error:  # whatever a client or its database raises: the local record has it
            _warn(f"MLflow at {self.uri} does not take step {step} ({first_line(error)}); the local record has it.")
            return False
        return True


def _metrics(step: int, values: dict[str, float]) -> list[Any]:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def connect(uri: str) -> Any:
    """An MlflowClient on `uri` that leaves the terminal to us: no migration log, no bars for small files."""
    import logging
    import os

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri, uri)
