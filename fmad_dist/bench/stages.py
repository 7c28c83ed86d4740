"""What is done for one model: train, evaluate, compare. Each stage is an `fmad` command that goes on after a kill, and
whether it is done is read from the files it leaves, never from a journal."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.parts import Part
from fmad_dist.comparison.run import comparison_key
from fmad_dist.detector_files import SPEC_NAME, DetectorSpec, check_intact
from fmad_dist.errors import UserError
from fmad_dist.evaluation.partial import FOLDER as PARTIAL
from fmad_dist.evaluation.partial import evaluation_key
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import changed_files, read_stamp
from fmad_dist.training.checkpoint import Checkpoints


@dataclass(frozen=True, slots=True)
class Status:
    """`note` says from where a stage goes on, why it is done again, or what it waits for."""

    state: Literal["done", "to do", "waits"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How stages are started: options of the `fmad` commands; None = the command's default."""

    processes: int | None = None
    max_restarts: int | None = None
    workers: int | None = None
    save_every: float | None = None

    def words(self, *names: str) -> list[str]:
        """The named options that are given."""
        given = {name: getattr(self, name) for name in names}
        flags = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value is not None]
        return [word for flag, value in flags for word in (flag, str(value))]


@dataclass(frozen=True)
class Stage(ABC):
    part: Part
    title = ""

    @property
    def name(self) -> str:
        return f"{self.part.name}: {self.title}"

    @abstractmethod
    def status(self) -> Status:
        """Asked only when the stages before it are done."""

    @abstractmethod
    def command(self, options: Options) -> list[str]:
        """The words after `fmad`."""

    def prepare(self) -> None:
        """Make what has to be there before the command starts."""
        self.part.write_config()


class Train(Stage):
    """Done when the run has the calibrated detector that the configuration asks for. One that is damaged, or was made
    with another scorer, protocol or false-alarm rate, is made again from the last checkpoint."""

    title = "train"

    def status(self) -> Status:
        wrong = self._wrong()
        if wrong is None:
            return Status("done", f"{self.part.config.train.steps} steps, {self.part.config.run_dir}")
        last, steps = self.last_step(), self.part.config.train.steps
        goes_on = f"goes on after step {last} of {steps}" if last else f"{steps} steps"
        return Status("to do", f"{wrong}; {goes_on}" if wrong else goes_on)

    def last_step(self) -> int:
        """Of the newest checkpoint; 0 if there is none."""
        steps = Checkpoints(self.part.config.checkpoint_url, self.part.config.data.patience_s).steps()
        return steps[-1] if steps else 0

    def command(self, options: Options) -> list[str]:
        return ["train", "--config", str(self.part.config_file), *options.words("processes", "max_restarts")]

    def prepare(self) -> None:
        super().prepare()
        if self._wrong():  # training counts a run with a detector as finished
            (self._folder / SPEC_NAME).unlink()

    @property
    def _folder(self) -> Path:
        return self.part.config.run_dir / "detector"

    def _wrong(self) -> str | None:
        """None: nothing. Empty: there is no detector yet."""
        try:
            spec = self.part.spec()
            if spec is None:
                return ""
            check_intact(self._folder, spec)
        except UserError as error:
            return f"the detector is made again ({error})"
        config, rate = self.part.config, spec.calibration.false_alarm_rate if spec.calibration else None
        wanted = (config.scorer, config.protocol, config.calibration.false_alarm_rate)
        if (spec.scorer, spec.protocol, rate) != wanted:
            return "the detector is made again, for another scorer, protocol or calibration"
        return None


class Judged(Stage):
    """Done when the folder holds what its stamp says, made from the wanted inputs."""

    folder_name = ""

    @property
    def out(self) -> Path:
        return self.part.root / self.folder_name / self.part.name

    @property
    def spec(self) -> DetectorSpec:
        """That of the model, which is there when this stage is asked for anything."""
        spec = self.part.spec()
        assert spec is not None
        return spec

    @abstractmethod
    def key(self) -> str:
        """Of the inputs, as the command will write it."""

    def status(self) -> Status:
        key, store = self.key(), Store(self.out)
        found = read_stamp(store)
        if found is None:
            return Status("to do", "goes on" if (self.out / PARTIAL / key).exists() else "")
        if found.key != key:
            return Status("to do", "its inputs changed")
        changed = changed_files(store, found)
        if changed:
            return Status("to do", f"done again, because {self.out / changed[0]} is missing or changed")
        return Status("done", str(self.out))


class Evaluate(Judged):
    title = "evaluate"
    folder_name = "evaluations"

    def key(self) -> str:
        return evaluation_key(self.spec, self.part.digests)

    def command(self, options: Options) -> list[str]:
        words = ["evaluate", "--model", self.part.model]
        words += [word for url in self.part.config.data.manifests for word in ("--manifest", url)]
        words += ["--out", str(self.out), "--overwrite"]  # it starts only when what is there is not what is wanted
        return words + options.words("processes", "workers", "save_every")


@dataclass(frozen=True)
class Compare(Judged):
    scorers: str
    peers: str
    title = "compare"
    folder_name = "comparisons"

    def key(self) -> str:
        return comparison_key(self.spec, self.part.config, self.part.digests, self.scorers, self.peers)

    def command(self, options: Options) -> list[str]:
        words = ["compare", "--config", str(self.part.config_file), "--model", self.part.model]
        words += ["--scorers", self.scorers, "--peers", self.peers, "--out", str(self.out)]
        return words + options.words("processes")


def survey(stages: Sequence[Stage]) -> list[Status]:
    """The status of the stages of one part; a model that is not there, or must be made again, is waited for."""
    found = list[Status]()
    for stage in stages:
        waits = found and found[0].state != "done" and isinstance(stages[0], Train)
        found.append(Status("waits", "for the training") if waits else stage.status())
    return found


def stages_of(part: Part, config: BenchConfig) -> list[Stage]:
    """In the order in which they need each other."""
    trained: list[Stage] = [] if part.taken else [Train(part)]
    compared: list[Stage] = [Compare(part, config.scorers, config.peers)] if config.compares else []
    return [*trained, Evaluate(part), *compared]
