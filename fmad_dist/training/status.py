"""Where a training run is: read from its record, its checkpoints, its detector and MLflow. Nothing is changed."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fmad_dist.base.console import duration
from fmad_dist.base.errors import UserError
from fmad_dist.config.files import parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.detector.files import SPEC_NAME, DetectorSpec, check_intact, read_spec
from fmad_dist.storage import Store
from fmad_dist.stream.mixture import Mixture
from fmad_dist.tracking.record import METRICS_NAME, read_lines
from fmad_dist.tracking.runs import NOTE_NAME, ServerStatus
from fmad_dist.training.checkpoint import Damaged
from fmad_dist.training.export import checkpoints_of
from fmad_dist.training.interruption import Preempted

PATIENCE_S = 5.0  # for a storage that does not answer


class RunStatus:
    """Of a run directory; or of the folder or URL of its checkpoints, which have neither metrics nor a detector.

    `step` is the last one that is known of, `usable` the newest whose checkpoint can be read, `problems` are sentences
    about damaged files and a storage that does not answer.

    Raises:
        UserError: this is neither.
    """

    def __init__(self, run: str) -> None:
        self.run, self.problems = run, list[str]()
        self.checkpoints, config = checkpoints_of(run)
        self.checkpoints.store.patience_s = PATIENCE_S
        self.folder = Path(Store(run).path()) if config else None
        self.published, self.incomplete = dict[int, datetime](), list[int]()
        self.usable: int | None = None
        try:
            self.published, self.incomplete = self.checkpoints.published(), sorted(self.checkpoints.incomplete())
            self.usable = next(filter(self._is_usable, sorted(self.published, reverse=True)), None)
        except UserError as error:
            if config is None:
                raise
            self.problems.append(str(error))
        if config is None:
            if self.usable is None:
                raise UserError(f"{run}: no config.yaml and no checkpoint; give a run directory or its checkpoint URL.")
            config = parse_config(self.checkpoints.read(self.usable).state.config, source=run)
        self.config = config
        lines = read_lines(self.folder / METRICS_NAME) if self.folder and (self.folder / METRICS_NAME).exists() else []
        self.line = lines[-1] if lines else None
        self.step = max(self.line["step"] if self.line else 0, self.usable or 0)
        self.detector = self._read_detector(self.folder / "detector") if self.folder else None
        self.server = ServerStatus(self.folder) if self.folder and (self.folder / NOTE_NAME).is_file() else None

    def _is_usable(self, step: int) -> bool:
        """Whether its description can be read and its files have their sizes; no digest is computed."""
        try:
            found = self.checkpoints.read(step)
        except Damaged as error:
            self.problems.append(f"step {step}: {error}")
            return False
        sizes = {entry.name: entry.num_bytes for entry in found.store.entries()}
        bad = [name for name, file in found.files.items() if sizes.get(name) != file.num_bytes]
        self.problems += [f"step {step}: {found.store.url_of(name)}: missing or truncated." for name in bad[:1]]
        return not bad

    def _read_detector(self, folder: Path) -> DetectorSpec | None:
        if not (folder / SPEC_NAME).is_file():
            return None
        try:
            spec = read_spec(folder)
            check_intact(folder, spec)
            return spec
        except UserError as error:
            self.problems.append(str(error))
            return None

    @property
    def is_complete(self) -> bool:
        return self.step >= self.config.train.steps and (
            self.folder is None or what_lacks(self.folder, self.config) is None
        )

    @property
    def seems_to_run(self) -> bool:
        """Whether its metrics are younger than what the watchdog takes for a hang, and no end was noted."""
        if self.is_complete or self.line is None or (self.server and self.server.ended):
            return False
        return time.time() - self.line["time"] / 1000 < self.config.train.hang_s

    @property
    def next_command(self) -> str:
        """What goes on from here."""
        if self.folder is None:
            return f"fmad export --run {self.run} --out FOLDER"
        if not self.is_complete:
            return f"fmad train --config {self.folder / 'config.yaml'}"
        if self.server and (self.server.lacks(self.step) or not self.server.version):
            return f"fmad sync {self.run}"
        return f"fmad evaluate --model {self.run} --data {' --data '.join(self.config.data.manifests)} --out FOLDER"

    def lines(self) -> Iterator[str]:
        """What there is, one thing a line."""
        total = self.config.train.steps
        state = "complete" if self.is_complete else "it seems to run" if self.seems_to_run else "not complete"
        yield f"run            {self.config.name}: step {self.step} of {total} ({self.step / total:.0%}), {state}"
        if self.line is not None:
            values = [f"{k} {v:.4g}" for k, v in self.line.items() if k not in ("step", "time") and "/" not in k]
            when = _when(datetime.fromtimestamp(self.line["time"] / 1000, UTC))
            yield f"last metrics   step {self.line['step']}, {when}: {', '.join(values)}"
        yield f"checkpoints    {', '.join(map(str, self.published)) or 'none'} at {self.checkpoints.store.url}"
        if self.usable is not None:
            yield f"  newest       step {self.usable}, {_when(self.published[self.usable])}"
        if self.incomplete:
            yield f"  incomplete   {', '.join(map(str, self.incomplete))}"
        if self.folder is not None:
            yield f"detector       {_described(self.detector)}"
            found = self.server.lines(self.step) if self.server else ["not tracked"]
            yield from (f"MLflow         {one}" for one in found)
        yield from (f"problem        {one}" for one in self.problems)


def check_complete(config: RunConfig) -> None:
    """Check that the run has the detector that the configuration asks for, for a scheduler: launchers end with 0 where
    their ranks stopped on request.

    Raises:
        Preempted: it has not.
    """
    known = {"manifest_digests": Mixture.load(config.data.manifests).digests} if config.data.mode == "indexed" else {}
    lacking = what_lacks(config.run_dir, config, known)
    if lacking is not None:
        raise Preempted(f"{config.run_dir}: {lacking}; start the training again to go on.")


def _described(spec: DetectorSpec | None) -> str:
    if spec is None:
        return "none"
    known = spec.calibration
    limits = f"{len(known.thresholds)} thresholds at {known.false_alarm_rate:g} false alarms" if known else "none"
    return f"of step {spec.train_step}, scorer {spec.scorer.name}, {limits}"


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC ({duration((datetime.now(UTC) - time).total_seconds())} ago)"
