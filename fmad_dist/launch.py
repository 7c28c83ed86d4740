"""Start a launcher script on several local processes, exactly as `accelerate launch` would.

A worker cannot give its parent more than an exit code, so the first one that meets bad input leaves its sentence in a
file that the parent names; then the user reads it once, not once per process and not below a launcher's traceback.
"""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fmad_dist.errors import UserError

LAUNCHER = Path(__file__).resolve().parent.parent / "launcher"
ERROR_FILE = "FMAD_ERROR_FILE"


class JobFailed(RuntimeError):
    """A launched process died of something that is not bad input; its traceback is in the output above."""


def default_processes() -> int:
    """One per GPU; on a CPU machine two, or one if it has a single core."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def launch(script: str, arguments: Sequence[str], processes: int) -> None:
    """Run launcher/<script> on `processes` processes and wait for them.

    Raises:
        UserError: a process met bad input; the sentence is its own.
        JobFailed: a process died in another way.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    config = LAUNCHER / "accelerate" / "local.yaml"
    options = ["--config_file", str(config), "--num_processes", str(processes)]
    options += ["--main_process_port", str(_free_port())]
    with tempfile.TemporaryDirectory(prefix="fmad-launch-") as scratch:
        message = Path(scratch) / "error"
        _set_environment(processes, message)
        try:
            launch_command(launch_command_parser().parse_args([*options, str(LAUNCHER / script), *arguments]))
        except ChildFailedError as error:
            if message.exists():
                raise UserError(message.read_text()) from None
            rank, failure = error.get_first_failure()
            raise JobFailed(f"rank {rank} of {script} ended with exit code {failure.exitcode}") from None


def exit_with(error: UserError) -> None:
    """End this process with code 2 after saying the sentence: to the parent if it listens, else to the terminal."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        sys.stderr.write(f"error: {error}\n")
    else:
        scratch = Path(f"{path}.{os.getpid()}")
        scratch.write_text(str(error))
        try:
            os.link(scratch, path)  # the first one wins, and the parent never reads half a sentence
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    sys.stderr.flush()
    sys.exit(2)


def _set_environment(processes: int, message: Path) -> None:
    import torch

    os.environ[ERROR_FILE] = str(message)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
