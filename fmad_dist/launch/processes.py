"""Do a job on several processes: local ones, or those that `accelerate launch` has started.

Local ones are torch's own launcher's. On a CPU they are copies of one process that has imported what they need, so that
this is done once and not by each of them, nor again when they are started again; benchmarks/startup has the figures.
GPUs do not survive such a copy, and their machines have a core for each rank.
"""

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmad_dist.base.companions import ending_together
from fmad_dist.base.errors import UserError
from fmad_dist.base.process import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED, JobFailed
from fmad_dist.base.stopping import STOP
from fmad_dist.base.world import World, is_launched
from fmad_dist.launch.rank import NAME, Job, Options, run_rank

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

TEMPLATE_MODULE = "fmad_dist.launch.template"
FINAL = (EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED)  # another start would end in the same way


def run_job(
    job: Job[Options],
    options: Options,
    processes: int | None = None,
    *,
    check: Callable[[int], object] | None = None,
    max_restarts: int = 0,
    needs_launcher: bool = False,
    libraries: str | None = None,
) -> bool:
    """Do `job(options, world)` on every rank. True where the command goes on with what follows the work: in the
    process that a user started, and in the main rank of those that a launcher started.

    Such a rank does its part. Otherwise `check` is called with the number of local processes (`processes`, None =
    `default_processes`), which are then started; a single one is this process itself unless the job `needs_launcher`.
    `libraries` is a module that imports what they will need besides what this process has imported.

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
        launch(job, options, count, max_restarts, asked, libraries)
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


def launch(
    job: Job[Options],
    options: Options,
    processes: int,
    max_restarts: int,
    asked: threading.Event,
    libraries: str | None = None,
) -> None:
    """Do the job on `processes` new processes and wait for them.

    When one of them dies, all are started again, up to `max_restarts` times, unless it met bad input. They are sent
    SIGUSR1 once it was `asked`.

    Raises:
        UserError: a process met bad input, hung or stopped on request; the sentence and the exit code are its own.
        JobFailed: a process died in another way.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    title = job.__name__.removeprefix("run_")
    scratches = tempfile.TemporaryDirectory(prefix="fmad-launch-")
    with scratches as scratch, _environment(processes), _passed_on(asked), _start_method(libraries) as method:
        for start in range(max_restarts + 1):
            message = Path(scratch) / f"error-{start}.json"
            try:
                elastic_launch(_settings(processes, method), run_rank)(job, options, message)
                _raise_message(message, only=(EXIT_STOPPED,))
                return
            except ChildFailedError as error:
                _raise_message(message, only=FINAL if start < max_restarts else ())
                rank, failure = error.get_first_failure()
                died = JobFailed(f"rank {rank} of {title} ended with exit code {failure.exitcode}")
            except SignalException as error:
                if error.sigval is signal.SIGINT:
                    raise KeyboardInterrupt from None
                _raise_message(message)
                raise JobFailed(f"{title} was ended by {error.sigval.name}") from None
    raise died


@contextmanager
def _start_method(libraries: str | None) -> Iterator[str]:
    """How `multiprocessing` starts the ranks inside the block. The server that copies are of is there for one launch,
    so they have the environment and the outputs of then."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        yield "spawn"
        return
    server: Any = forkserver._forkserver
    context = multiprocessing.get_context("forkserver")
    own = [name for name in list(sys.modules) if name.split(".")[0] in ("fmad_dist", "data_tools")]
    server._stop()
    context.set_forkserver_preload([TEMPLATE_MODULE, *([libraries] if libraries else []), *own])
    try:
        yield "forkserver"
    finally:
        server._stop()
        context.set_forkserver_preload(["__main__"])  # Python's own choice


def _settings(processes: int, start_method: str) -> "LaunchConfig":
    """Of torch's launcher."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="fmad",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0},
        max_restarts=0,  # `launch` starts again
        start_method=start_method,
    )


def _raise_message(path: Path, only: Collection[int] = ()) -> None:
    """The sentence that a process left, if one did (and it is about one of these exit codes)."""
    if path.is_file():
        body = json.loads(path.read_text())
        if only and body["code"] not in only:
            return
        error = UserError(body["text"])
        error.exit_code = body["code"]
        raise error from None


@contextmanager
def _passed_on(asked: threading.Event) -> Iterator[None]:
    """Inside the block, SIGUSR1 goes to every rank once it was `asked`, also to those that start later."""
    ended = threading.Event()
    threading.Thread(target=_pass_on, args=(asked, ended), name="pass-on", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _pass_on(asked: threading.Event, ended: threading.Event) -> None:
    import psutil

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    told = set[int]()
    while not ended.wait(0.1):
        if not asked.is_set():
            continue
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if child.pid not in told and child.name().startswith(NAME):
                    child.send_signal(signal.SIGUSR1)
                    told.add(child.pid)


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Inside the block, the environment that ranks inherit; another launch may be of another number of them."""
    import torch

    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes huge pages: fewer faults in every step
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.stdout.flush()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
