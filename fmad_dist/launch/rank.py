"""What each process of a job runs that `fmad` starts: `python -m fmad_dist.launch.rank FILE`.

The file has the job, a function `job(options, world)` by its name, and the options that the parent has checked and
resolved. Ranks read nothing else, so neither a configuration that changes meanwhile nor a second reading of the
command line can make them do something else than what was checked.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from fmad_dist.base.companions import ending_together
from fmad_dist.base.process import as_rank
from fmad_dist.base.stopping import serve_stop_signal
from fmad_dist.base.world import World

Options = TypeVar("Options")
Job = Callable[[Options, World], object]


def write_job(path: Path, job: Job[Options], options: Options) -> None:
    """Write the job and its options: a dataclass or pydantic model of values that JSON can hold."""
    from pydantic import TypeAdapter

    tree = TypeAdapter(type(options)).dump_python(options, mode="json")
    path.write_text(json.dumps({"job": _name_of(job), "type": _name_of(type(options)), "options": tree}))


def read_job(path: Path) -> tuple[Job[Any], Any]:
    """The job and the options of a file that `write_job` wrote."""
    from pydantic import TypeAdapter

    body = json.loads(path.read_text())
    return resolve_name(body["job"]), TypeAdapter(resolve_name(body["type"])).validate_python(body["options"])


def _name_of(member: Any) -> str:
    return f"{member.__module__}:{member.__qualname__}"


def main() -> None:
    serve_stop_signal()
    with as_rank():
        job, options = read_job(Path(sys.argv[1]))
        world = World.from_environment()
        with ending_together(world):
            job(options, world)


if __name__ == "__main__":
    main()
