"""Start a launcher script on several local processes, exactly as `accelerate launch` would.

A worker cannot give its parent more than an exit code, so the first one that ends early leaves its sentence in a file
that the parent names; then the user reads it once, not once per process and not below a launcher's traceback.
Exit codes: 2 bad input, 75 stopped on request after saving a checkpoint, 76 hung, 1 anything else.
"""

import argparse
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fmad_dist.config import RunConfig
from fmad_dist.config_files import load_config
from fmad_dist.errors import UserError
from fmad_dist.startup import end_process, import_deepspeed, share_cores, spare_collector
from fmad_dist.storage import use_endpoint

LAUNCHER = Path(__file__).resolve().parent.parent / "launcher"
ERROR_FILE = "FMAD_ERROR_FILE"
PR_SET_PDEATHSIG = 1
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command goes on where it stopped
EXIT_HUNG = 76


class JobFailed(RuntimeError):
    """A launched process died of something that is not bad input; its traceback is in the output above."""


def default_processes() -> int:
    """One per GPU; on a CPU machine two, or one if it has a single core."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def launch(script: str, arguments: Sequence[str], processes: int, max_restarts: int = 0) -> None:
    """Run launcher/<script> on `processes` processes and wait for them.

    When one of them dies, all are started again, up to `max_restarts` times. SIGUSR1 is passed on to them.

    Raises:
        UserError: a process met bad input, hung or stopped on request; the sentence and the exit code are its own.
        JobFailed: a process died in another way.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    config = LAUNCHER / "accelerate" / "one_node.yaml"
    options = ["--config_file", str(config), "--num_processes", str(processes)]
    options += ["--main_process_port", str(_free_port()), "--max_restarts", str(max_restarts)]
    with tempfile.TemporaryDirectory(prefix="fmad-launch-") as scratch:
        message = Path(scratch) / "error"
        _set_environment(processes, message)
        import_deepspeed()  # as accelerate would
        signal.signal(signal.SIGUSR1, lambda number, frame: _pass_on(number, script))
        try:
            launch_command(launch_command_parser().parse_args([*options, str(LAUNCHER / script), *arguments]))
            _raise_message(message, only=EXIT_STOPPED)
        except ChildFailedError as error:
            _raise_message(message)
            rank, failure = error.get_first_failure()
            raise JobFailed(f"rank {rank} of {script} ended with exit code {failure.exitcode}") from None
        except SignalException as error:
            _raise_message(message)
            raise JobFailed(f"{script} was ended by {error.sigval.name}") from None
        finally:
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


def _pass_on(number: int, script: str) -> None:
    import psutil

    for child in psutil.Process().children():
        if str(LAUNCHER / script) in child.cmdline():
            child.send_signal(number)


def exit_with(error: UserError) -> None:
    """End this process after saying the sentence: to the parent if it listens, else to the terminal."""
    if not leave_message(str(error), error.exit_code):
        sys.stderr.write(f"{prefix(error)}: {error}\n")
    end_process(_own_code(error.exit_code))  # a thread of a library, left to itself, may abort what ends otherwise


def _own_code(code: int) -> int:
    """A process that stopped on request ends with 0, or the launcher would start it again; its parent ends with 75."""
    return 0 if code == EXIT_STOPPED else code


def config_parser(description: str) -> argparse.ArgumentParser:
    """Options of an entry point that works on a configuration."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file, see configs/, or the config.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser


def read_config(arguments: argparse.Namespace) -> RunConfig:
    """What `config_parser` was given; the storage endpoint is set as it says.

    Raises:
        UserError: the file or an override is not valid.
    """
    config = load_config(arguments.config, arguments.overrides)
    use_endpoint(config.data.endpoint_url)
    return config


@contextmanager
def ending_well() -> Iterator[None]:
    """Around the work of a launched process: bad input ends it with one sentence, and what breaks because another
    process ended that way is not told on top of it. It ends with the launcher that started it, or after the work."""
    die_with_parent()
    share_cores()
    spare_collector()
    try:
        yield
    except UserError as error:
        exit_with(error)
    except Exception:
        path = _message_path()
        if path is None or not path.exists():
            raise
        end_process(_own_code(json.loads(path.read_text())["code"]))
    end_process(0)


def die_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that happens (Linux).

    Launched processes have sessions of their own: without this, killing the whole process group of a command would
    leave them at work beside those of the next start.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _message_path() -> Path | None:
    """Where a process of this start leaves its sentence, if the parent listens."""
    path = os.environ.get(ERROR_FILE)
    return Path(f"{path}.{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.json") if path else None


def prefix(error: UserError) -> str:
    return "stopped" if error.exit_code == EXIT_STOPPED else "error"


def leave_message(text: str, code: int) -> bool:
    """Leave the parent a sentence and an exit code; False if there is no parent that listens."""
    path = _message_path()
    if path is None or not path.parent.is_dir():
        return False
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"text": text, "code": code}))
    try:
        os.link(scratch, path)  # the first one wins, and the parent never reads half a sentence
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
    return True


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
