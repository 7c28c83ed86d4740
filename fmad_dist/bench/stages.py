"""What is done for one model: train, evaluate, compare. Each stage is an `fmad` command that goes on after a kill, and
whether it is done is read from the files that it leaves; nothing else records it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.models import BenchModel
from fmad_dist.comparison.compare import comparison_key
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.detector.files import SPEC_NAME, DetectorSpec
from fmad_dist.evaluation.provenance import evaluation_key
from fmad_dist.jobs.folder import PARTIAL
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
    """How stages are started: options of the `fmad` commands, with the same defaults."""

    processes: int | None = None
    max_restarts: int = 0
    workers: int = 0
    save_every: float = 60.0

    def words(self, *names: str) -> list[str]:
        """Those of the named options that differ from the commands' defaults."""
        given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Options(), name)}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True)
class Stage(ABC):
    model: BenchModel
    title = ""

    @property
    def name(self) -> str:
        return f"{self.model.name}: {self.title}"

    @abstractmethod
    def status(self) -> Status:
        """Asked only when the stages before it are done."""

    @abstractmethod
    def command(self, options: Options) -> list[str]:
        """The words after `fmad`."""

    def prepare(self) -> None:
        """Make what has to be there before the command starts."""
        self.model.write_config()


class Train(Stage):
    """A training. It is done when the run directory holds the calibrated detector that the configuration asks for; one
    that is damaged, or of another scorer, protocol or false-alarm rate, is made again from the last checkpoint."""

    title = "train"

    def status(self) -> Status:
        wrong = self._wrong()
        if wrong is None:
            return Status("done", f"{self.model.config.train.steps} steps, {self.model.config.run_dir}")
        last, steps = self.last_step(), self.model.config.train.steps
        goes_on = f"goes on after step {last} of {steps}" if last else f"{steps} steps"
        return Status("to do", f"{wrong}; {goes_on}" if wrong else goes_on)

    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        steps = Checkpoints(self.model.config.checkpoint_url, self.model.config.data.patience_s).steps()
        return steps[-1] if steps else 0

    def command(self, options: Options) -> list[str]:
        return ["train", "--config", str(self.model.config_file), *options.words("processes", "max_restarts")]

    def _wrong(self) -> str | None:
        """What is wrong with the detector, as a note; empty if there is none yet, None if nothing is wrong."""
        config = self.model.config
        lacking = what_lacks(config.run_dir, config, {"manifest_digests": self.model.digests})
        if not lacking or not (config.run_dir / "detector" / SPEC_NAME).is_file():
            return "" if lacking else None
        return f"{lacking} and is made again"


class Scoring(Stage):
    """A stage whose results are done when their stamp has the key of the wanted inputs and the digests of the files."""

    folder_name = ""

    @property
    def out(self) -> Path:
        return self.model.root / self.folder_name / self.model.name

    @property
    def spec(self) -> DetectorSpec:
        """That of the model, which is trained before this stage is asked for anything."""
        spec = self.model.spec()
        assert spec is not None
        return spec

    @abstractmethod
    def key(self) -> str:
        """The key of the inputs that the command will write into the stamp."""

    def status(self) -> Status:
        key, store = self.key(), Store(self.out)
        found = read_stamp(store)
        if found is None:
            begun = read_stamp(store.child(PARTIAL))
            return Status("to do", "goes on" if begun is not None and begun.key == key else "")
        if found.key != key:
            return Status("to do", "its inputs changed")
        changed = changed_files(store, found)
        if changed:
            return Status("to do", f"done again, because {self.out / changed[0]} is missing or changed")
        return Status("done", str(self.out))


class Evaluate(Scoring):
    title = "evaluate"
    folder_name = "evaluations"

    def key(self) -> str:
        return evaluation_key(self.spec, self.model.digests)

    def command(self, options: Options) -> list[str]:
        words = ["evaluate", "--model", self.model.uri]
        words += [word for url in self.model.config.data.manifests for word in ("--data", url)]
        words += ["--out", str(self.out), "--overwrite"]  # it starts only when what is there is not what is wanted
        return words + options.words("processes", "workers", "save_every")


@dataclass(frozen=True)
class Compare(Scoring):
    scorers: str
    peers: str
    title = "compare"
    folder_name = "comparisons"

    def key(self) -> str:
        return comparison_key(self.spec, self.model.config, self.model.digests, self.scorers, self.peers)

    def command(self, options: Options) -> list[str]:
        words = ["compare", "--config", str(self.model.config_file), "--model", self.model.uri]
        words += ["--scorers", self.scorers, "--peers", self.peers, "--out", str(self.out), "--overwrite"]
        return words + options.words("processes", "save_every")


def survey(stages: Sequence[Stage]) -> list[Status]:
    """The status of the stages of one model; the others wait for its training, if that is to do."""
    found = list[Status]()
    for stage in stages:
        waits = found and found[0].state != "done" and isinstance(stages[0], Train)
        found.append(Status("waits", "for the training") if waits else stage.status())
    return found


def stages_of(model: BenchModel, config: BenchConfig) -> list[Stage]:
    """In the order in which they need each other."""
    trained: list[Stage] = [] if model.taken else [Train(model)]
    compared: list[Stage] = [Compare(model, config.scorers, config.peers)] if config.compares else []
    return [*trained, Evaluate(model), *compared]
