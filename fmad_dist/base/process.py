"""How a process of fmad begins and ends: what makes both quick, exit codes, and the sentence that a rank leaves.

A training process imports some 5,000 modules. Their objects live as long as the process, yet Python's garbage collector
looks at them again and again while they come, and takes them all apart when the process ends; benchmarks/startup has
the figures.

A rank cannot give its parent more than an exit code, so the first one that ends early leaves its sentence in a file
that the parent names; then the user reads it once, not once per rank and not below a launcher's traceback.
Exit codes: 2 bad input, 75 stopped on request after saving a checkpoint, 76 hung, 130 Ctrl-C, 1 anything else.
"""

import atexit
import ctypes
import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from fmad_dist.base.errors import UserError, full_disk
from fmad_dist.base.world import is_launched

THRESHOLDS = (50_000, 20, 100)  # of the collector's generations; Python's own are 700, 10, 10
SPINS = "1000"  # what GNU OpenMP itself takes where there are more threads than cores; else 300,000
ERROR_FILE = "FMAD_ERROR_FILE"
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command goes on where it stopped
EXIT_HUNG = 76
EXIT_INTERRUPTED = 130  # as a shell names the end by Ctrl-C


def spare_collector() -> None:
    """Collect garbage less often from now on."""
    gc.set_threshold(*THRESHOLDS)


def share_cores() -> None:
    """Let torch's threads sleep soon while they wait for each other; to be called before torch is imported.

    GNU OpenMP lets them spin for milliseconds instead, and the kernel cannot tell that from work: beside
    anything else on the same cores, a second training say, each waits for threads that wait. Whoever has chosen
    `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` keeps it. benchmarks/training has the figures.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


class JobFailed(RuntimeError):
    """A launched process died of something that is not bad input; its traceback is in the output above."""


def own_exit_code(code: int) -> int:
    """The exit code of this process where the job ends with `code`: a rank of `accelerate launch` that stopped on
    request ends with 0, or it would be started again."""
    return 0 if code == EXIT_STOPPED and is_launched() and _message_path() is None else code


@contextmanager
def as_rank() -> Iterator[None]:
    """Around the work of a rank that `fmad` started, which ends with its parent. Where it fails the process ends here;
    else, and where it stopped on request, it has nothing more to do but to return, and no other rank is ended for it.

    Bad input ends it with one sentence, left for the parent. What breaks after another rank has left one is a
    consequence: no traceback is shown, and the exit code is the other's.
    """
    die_with_parent()
    share_cores()
    spare_collector()
    signal.signal(signal.SIGINT, lambda number, frame: end_now(EXIT_INTERRUPTED))  # whoever started it says so
    code = 0
    try:
        yield
    except UserError as error:
        if not leave_message(str(error), error.exit_code):
            sys.stderr.write(f"{prefix(error)}: {error}\n")
        code = error.exit_code
    except Exception as error:
        told = full_disk(error) if isinstance(error, OSError) else None
        if told is not None and leave_message(str(told), told.exit_code):
            end_process(told.exit_code)
        left = _message_path()
        known = left is not None and left.exists()
        if not known:
            traceback.print_exc()
        code = json.loads(left.read_text())["code"] if left is not None and known else 1
    if code not in (0, EXIT_STOPPED):
        end_process(code)
    _finish()


def die_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that happens (Linux).

    Launched processes have sessions of their own: without this, killing the whole process group of a command would
    leave them at work beside those of the next start.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_starter(*_: object) -> None:
    """From now on this process, which `multiprocessing` has started, ends when the one that asked for it does. Its
    parent is a server that lives as long as it does, so it would wait for ever for one that was killed.
    """
    starter = multiprocessing.parent_process()

    def watch() -> None:
        if starter is not None:
            starter.join()
            os._exit(1)

    threading.Thread(target=watch, name="starter", daemon=True).start()


def name_process(name: str) -> None:
    """Give this process a name of up to 15 ASCII characters for `top`, `ps` and the like (Linux)."""
    _prctl(PR_SET_NAME, name.encode())


def _prctl(option: int, value: int | bytes) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


def _message_path() -> Path | None:
    """Where this process leaves its sentence, if the parent listens."""
    path = os.environ.get(ERROR_FILE)
    return Path(path) if path else None


def prefix(error: UserError) -> str:
    return "stopped" if error.exit_code == EXIT_STOPPED else "error"


def leave_message(text: str, code: int) -> bool:
    """Leave the parent a sentence and an exit code; False if there is no parent that listens."""
    path = _message_path()
    if path is None or not path.parent.is_dir():
        return False
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps({"text": text, "code": code}))
        os.link(scratch, path)  # the first one wins, and the parent never reads half a sentence
    except FileExistsError:
        pass
    except OSError:  # the disk is full: say it here
        return False
    finally:
        scratch.unlink(missing_ok=True)
    return True


class Stdout(io.TextIOWrapper):
    """Standard output that may go away: what cannot be written any more is left out, and the work goes on to its end
    and its own exit code, since results are in files."""

    @classmethod
    def install(cls) -> None:
        """Take the place of `sys.stdout`, where that is a file or a pipe."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            old = sys.stdout
            interactive, encoding, errors = old.line_buffering, old.encoding, old.errors
            sys.stdout = cls(old.detach(), encoding=encoding, errors=errors, line_buffering=interactive)

    def write(self, text: str) -> int:
        with self._lasting():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            super().flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                sys.stderr.write(f"warning: standard output cannot be written ({error.strerror})\n")
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def end_now(code: int) -> NoReturn:
    """End this process without waiting for its threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(Exception):
        atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def end_process(code: int) -> NoReturn:
    """End this process, and leave its modules to the operating system: threads end, exit handlers run, output is
    written, as at the end of a child of `multiprocessing`."""
    _finish()
    os._exit(code)


def _finish() -> None:
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):  # whoever read it has left
        sys.stdout.flush()
        sys.stderr.flush()
