"""Do a job on several processes: local ones, started as `accelerate launch` would, or those that it has started."""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmad_dist.base.companions import ending_together
from fmad_dist.base.deepspeed import import_deepspeed
from fmad_dist.base.errors import UserError
from fmad_dist.base.process import ERROR_FILE, EXIT_STOPPED, JobFailed
from fmad_dist.base.stopping import STOP
from fmad_dist.base.world import World, is_launched
from fmad_dist.launch.rank import Job, Options, write_job

ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")
RANK_MODULE = "fmad_dist.launch.rank"


def run_job(
    job: Job[Options],
    options: Options,
    processes: int | None = None,
    *,
    check: Callable[[int], object] | None = None,
    max_restarts: int = 0,
    needs_launcher: bool = False,
) -> bool:
    """Do `job(options, world)` on every rank. True where the command goes on with what follows the work: in the
    process that a user started, and in the main rank of those that a launcher started.

    Such a rank does its part. Otherwise `check` is called with the number of local processes (`processes`, None =
    `default_processes`), which are then started; a single one is this process itself unless the job `needs_launcher`.

    Raises:
        UserError: bad input; of ranks of our own, see `launch`.
        JobFailed: see `launch`.
    """
    if is_launched():
        if processes is not None:
            raise UserError("--processes: the launcher decides here; use its --num_processes.")
        world = World.from_environment()
        with ending_together(world):
            job(options, world)
        return world.is_main
    count = processes or default_processes()
    if count == 1 and not needs_launcher:
        if check is not None:
            check(count)
        job(options, World())
        return True
    with _stop_signal_noted() as asked:  # for the ranks, which are not there yet
        if check is not None:
            check(count)
        launch(job, options, count, max_restarts, asked)
    return True


@contextmanager
def _stop_signal_noted() -> Iterator[threading.Event]:
    """Inside the block SIGUSR1 sets the event, and processes that start inherit it blocked until they serve it."""
    asked = threading.Event()
    handler = signal.signal(signal.SIGUSR1, lambda number, frame: asked.set())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield asked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR1, handler)


def default_processes() -> int:
    """One per GPU; on a CPU machine two, or one if it has a single core."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def launch(job: Job[Options], options: Options, processes: int, max_restarts: int, asked: threading.Event) -> None:
    """Do the job on `processes` new processes and wait for them.

    When one of them dies, all are started again, up to `max_restarts` times, unless it met bad input. They are sent
    SIGUSR1 once it was `asked`.

    Raises:
        UserError: a process met bad input, hung or stopped on request; the sentence and the exit code are its own.
        JobFailed: a process died in another way.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = ["--config_file", str(ACCELERATE_CONFIG), "--num_processes", str(processes)]
    words += ["--main_process_port", str(_free_port()), "--max_restarts", str(max_restarts)]
    title = job.__name__.removeprefix("run_")
    with tempfile.TemporaryDirectory(prefix="fmad-launch-") as scratch:
        message, file = Path(scratch) / "error", Path(scratch) / f"{title}.json"
        write_job(file, job, options)
        _set_environment(processes, message)
        import_deepspeed()  # as accelerate would
        ended = threading.Event()
        threading.Thread(target=_pass_on, args=(file, asked, ended), name="pass-on", daemon=True).start()
        try:
            launch_command(launch_command_parser().parse_args([*words, "--module", RANK_MODULE, str(file)]))
            _raise_message(message, only=EXIT_STOPPED)
        except ChildFailedError as error:
            _raise_message(message)
            rank, failure = error.get_first_failure()
            raise JobFailed(f"rank {rank} of {title} ended with exit code {failure.exitcode}") from None
        except SignalException as error:
            if error.sigval is signal.SIGINT:
                raise KeyboardInterrupt from None
            _raise_message(message)
            raise JobFailed(f"{title} was ended by {error.sigval.name}") from None
        finally:
            ended.set()
            os.environ.pop(ERROR_FILE, None)


def _raise_message(path: Path, only: int | None = None) -> None:
    """The sentence that a process of the last start left, if one did (and it is about this exit code)."""
    left = sorted(path.parent.glob(f"{path.name}.*.json"), key=lambda one: int(one.name.split(".")[1]))
    if left:
        body = json.loads(left[-1].read_text())
        if only not in (None, body["code"]):
            return
        error = UserError(body["text"])
        error.exit_code = body["code"]
        raise error from None


def _pass_on(file: Path, asked: threading.Event, ended: threading.Event) -> None:
    """Take SIGUSR1, and once it was `asked` send it to each rank of this launch, also to those that start later; they
    have its file in their command lines."""
    import psutil

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    told = set[int]()
    while not ended.wait(0.1):
        if not asked.is_set():
            continue
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it has just ended
                if child.pid not in told and str(file) in child.cmdline():
                    child.send_signal(signal.SIGUSR1)
                    told.add(child.pid)


def _set_environment(processes: int, message: Path) -> None:
    import torch

    os.environ[ERROR_FILE] = str(message)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes huge pages: fewer faults in every step
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
