"""What each process of a job does that `fmad` starts.

The parent has checked and resolved the options that it hands over. Ranks read nothing else, so neither a configuration
that changes meanwhile nor a second reading of the command line can make them do something else than what was checked.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fmad_dist.base.companions import ending_together
from fmad_dist.base.process import ERROR_FILE, as_rank, name_process
from fmad_dist.base.stopping import serve_stop_signal
from fmad_dist.base.world import World

Options = TypeVar("Options")
Job = Callable[[Options, World], object]
NAME = "fmad rank"  # of the process, with its number


def run_rank(job: Job[Options], options: Options, message: Path) -> None:
    """Do the part of this process, whose rank is in its environment; its sentence goes to `message`, if it fails."""
    os.environ[ERROR_FILE] = str(message)
    world = World.from_environment()
    name_process(f"{NAME} {world.rank}")
    serve_stop_signal()
    with as_rank(), ending_together(world):
        job(options, world)
