"""The driver: every stage that is not done is started as the command that a user would type; then the report."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fmad_dist.base.console import duration
from fmad_dist.base.errors import UserError
from fmad_dist.base.process import EXIT_STOPPED
from fmad_dist.bench.collect import collect, look
from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.models import BenchModel, models_of
from fmad_dist.bench.plan import check_comparisons, check_trainings
from fmad_dist.bench.stages import Options, Stage, Train, stages_of
from fmad_dist.launch.commands import CommandRunner
from fmad_dist.launch.processes import default_processes
from fmad_dist.storage.scratch import folder_lock


class StageFailed(UserError):
    """A stage ended with another exit code than 0, which becomes that of the bench."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


def run_bench(config: BenchConfig, options: Options) -> None:
    """Do what is not done yet, then write the report. A stage that fails ends the work on its model, not on the others.

    Raises:
        UserError: the configuration, a manifest or a later stage's settings are not valid, or another bench is at
            work in the same folder.
        StageFailed: at once a stage that was asked to stop; at the end the first one that failed.
    """
    models = models_of(config)
    check_comparisons(config, models)
    with _alone(Path(config.out)):
        check_trainings(models, options.processes or default_processes())
        failed = _run_all(config, models, options)
        found = look(config, models)
        if found.evaluations or not failed:
            collect(config, found)
    if failed:
        raise failed[0]


def collect_bench(config: BenchConfig) -> None:
    """Write the report over what is there, for example from jobs of a cluster.

    Raises:
        UserError: nothing is there.
        StageFailed: the report is written, but not over everything.
    """
    found = look(config, models_of(config))
    collect(config, found)
    if found.missing:
        missing = ", ".join(found.missing)
        raise StageFailed(f"the report is over what is done; missing: {missing}.", EXIT_STOPPED)


def prepare_bench(config: BenchConfig) -> list[str]:
    """Write the configurations of the trainings that are not done, for launchers on many nodes; returns the files."""
    stages = [stage for model in models_of(config) for stage in stages_of(model, config) if isinstance(stage, Train)]
    waiting = [stage for stage in stages if stage.status().state != "done"]
    with _alone(Path(config.out)):
        for stage in waiting:
            stage.prepare()
    return [str(stage.model.config_file) for stage in waiting]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(out, wait=False))
        except BlockingIOError:
            raise UserError(f"{out}: another `fmad bench` is at work here; wait, or choose another `out`.") from None
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror}); choose another `out`.") from None
        yield


def _run_all(config: BenchConfig, models: Sequence[BenchModel], options: Options) -> list[StageFailed]:
    every = [stages_of(model, config) for model in models]
    total, number, failed = sum(map(len, every)), 0, list[StageFailed]()
    commands = CommandRunner()
    for stages in every:
        try:
            for position, stage in enumerate(stages, number + 1):
                _run_stage(stage, f"[{position}/{total}] {stage.name}", commands, options)
        except StageFailed as error:
            if error.exit_code == EXIT_STOPPED:
                raise
            print(f"{error} The other models go on.", file=sys.stderr, flush=True)
            failed.append(error)
        number += len(stages)
    return failed


def _run_stage(stage: Stage, line: str, commands: CommandRunner, options: Options) -> None:
    status = stage.status()
    if status.state == "done":
        print(f"{line}: done already ({status.note})", flush=True)
        return
    print(f"{line}: {status.note or 'starts'}", flush=True)
    stage.prepare()
    start = time.monotonic()
    code = commands.run(stage.command(options))
    if commands.stopped or code == EXIT_STOPPED:
        raise StageFailed(f"{stage.name} was asked to stop; start the same command again to go on.", EXIT_STOPPED)
    if code:
        raise StageFailed(f"{stage.name} failed with exit code {code}; its message is above.", code)
    after = stage.status()
    if after.state != "done":
        raise StageFailed(f"{stage.name} ended, but is not done: {after.note}; start the command again.", 1)
    print(f"{line}: done in {duration(time.monotonic() - start)}", flush=True)
