"""Checks before hours are spent: each is one line that says what is wrong and how to repair it. Every rank calls."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.world import World

PACKAGES = ("fmad-dist", "torch", "accelerate", "deepspeed", "numpy", "timm")
MAX_SKEW_S = 5.0
FREE_BYTES = 10 << 30

Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `problem` None means it passed."""

    name: str
    found: str
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is None:
            return f"ok    {self.name}: {self.found}"
        return f"FAIL  {self.name}: {self.problem}"


def examine(config: RunConfig, world: World, gather: Gather) -> Iterator[Check]:
    """All checks; the processes have met already, so addresses and ports are right. The same on all ranks."""
    found = gather({"node": world.node, "versions": versions(), "gpus": gpus(), "time": now_together(gather)})
    nodes = 1 + max(one["node"] for one in found)
    yield Check("processes", f"{world.size} on {nodes} nodes have met")
    yield same_everywhere("versions", [one["versions"] for one in found], "install the same versions on all nodes")
    yield check_gpus([one["gpus"] for one in found], [one["node"] for one in found])
    yield check_clocks([one["time"] for one in found])
    yield from check_storages(config, world, gather)
    yield check_disks(gather((platform.node(), free_bytes(config))))
    yield gather(check_tracking(config) if world.is_main else None)[0]


def versions() -> str:
    """Python and the packages that must agree."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *found])


def gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}" if names else "none"


def now_together(gather: Gather) -> float:
    """The clock right after all processes have met."""
    gather(None)
    return time.time()


def same_everywhere(name: str, values: Sequence[str], fix: str) -> Check:
    """The first rank's value, or the first that differs from it."""
    for rank, value in enumerate(values):
        if value != values[0]:
            theirs = ", ".join(sorted(set(value.split(", ")) - set(values[0].split(", "))))
            ours = ", ".join(sorted(set(values[0].split(", ")) - set(value.split(", "))))
            return Check(name, "", f"rank {rank} has {theirs}, rank 0 has {ours}; {fix}")
    return Check(name, values[0])


def check_gpus(found: Sequence[str], nodes: Sequence[int]) -> Check:
    """Every node has the same GPUs, and one for each of its processes."""
    check = same_everywhere("GPUs per node", found, "use equal nodes, or other values of --num_processes")
    per_node = max(list(nodes).count(node) for node in nodes)
    if check.problem is None and found[0] != "none" and int(found[0].split()[0]) < per_node:
        problem = f"{per_node} processes per node for {found[0]}; start one process per GPU"
        return Check(check.name, "", problem)
    return check


def check_clocks(times: Sequence[float]) -> Check:
    """Signatures of storage requests and the order of log lines need clocks that agree."""
    skew = max(times) - min(times)
    late = times.index(max(times))
    fix = f"rank {late} is {skew:.0f} s ahead; start chrony or ntpd on all nodes"
    return Check("clocks", f"{skew:.2f} s apart", fix if skew > MAX_SKEW_S else None)


def check_storages(config: RunConfig, world: World, gather: Gather) -> Iterator[Check]:
    """Manifests can be read; checkpoints and the feature cache can be written, read by all nodes and deleted."""
    for url in config.data.manifests:
        yield worst(f"read {url}", gather(attempt(partial(Store(url).read, "manifest.json"))))
    for url in filter(None, (config.checkpoint_url, config.features.cache)):
        name = f".fmad-doctor-{gather(uuid.uuid4().hex)[0]}"
        yield worst(f"write, read and delete {url}", shared_file(Store(url), name, world, gather))


def shared_file(store: Store, name: str, world: World, gather: Gather) -> list[str | None]:
    """Every rank writes a file, reads that of the next rank and deletes its own; the problem of each rank or None."""

    def read_next() -> None:
        following = f"{name}-{(world.rank + 1) % world.size}"
        if not store.exists(following):
            raise UserError(
                f"{store.url_of(following)}: written by another process and not seen here; all need the same storage."
            )
        store.read(following)

    mine = f"{name}-{world.rank}"
    problems = [attempt(lambda: store.write(mine, b"fmad"))]
    gather(None)
    problems.append(attempt(read_next))
    gather(None)
    problems.append(attempt(lambda: store.remove(mine)))
    return gather(next((one for one in problems if one), None))


def attempt(action: Callable[[], object]) -> str | None:
    """What went wrong, or None."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def worst(name: str, problems: Sequence[str | None]) -> Check:
    """The first rank's problem stands for all."""
    bad = [(rank, problem) for rank, problem in enumerate(problems) if problem]
    return Check(name, f"by {len(problems)} processes", f"rank {bad[0][0]}: {bad[0][1]}" if bad else None)


def free_bytes(config: RunConfig) -> int:
    """Of the fullest local disk that a run writes to."""
    folders = [config.output, config.checkpoint_url, *filter(None, (config.features.cache, config.data.cache))]
    return min(shutil.disk_usage(existing(Path(one))).free for one in folders if "://" not in one)


def existing(path: Path) -> Path:
    """The path or the nearest folder above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def check_disks(found: Sequence[tuple[str, int]]) -> Check:
    node, free = min(found, key=lambda one: one[1])
    fix = f"{free / 2**30:.1f} GiB left on {node}; make it {FREE_BYTES >> 30}, or set train.checkpoint_url to a bucket"
    return Check("free disk", f"{free / 2**30:.0f} GiB on the fullest node", fix if free < FREE_BYTES else None)


def check_tracking(config: RunConfig) -> Check:
    """Create, log, register and delete on the MLflow server, as a training will."""
    if not config.tracking.mlflow:
        return Check("MLflow", "off (tracking.mlflow=false)")
    from mlflow.exceptions import MlflowException

    from fmad_dist.tracking.runs import connect, tracking_uri

    uri = tracking_uri(config)
    doing = "connect"
    name = f"fmad-doctor-{uuid.uuid4().hex[:8]}"
    try:
        client = connect(uri)
        doing = "create an experiment and a run"
        experiment = client.create_experiment(name)
        run = client.create_run(experiment).info.run_id
        doing = "log a metric"
        client.log_metric(run, "doctor", 1.0)
        doing = "register a model"
        client.create_registered_model(name)
        doing = "delete what it made"
        client.delete_registered_model(name)
        client.delete_run(run)
        client.delete_experiment(experiment)
    except (MlflowException, OSError) as error:
        fix = "start the server, correct tracking.uri, or ask for the permission"
        return Check("MLflow", "", f"{uri} does not let us {doing} ({first_line(error)}); {fix}")
    return Check("MLflow", f"{uri}: create, log, register")


def report(checks: Iterator[Check], world: World) -> None:
    """Print each line as it comes.

    Raises:
        UserError: a check failed.
    """
    failed = 0
    for check in checks:
        failed += check.problem is not None
        if world.is_main:
            sys.stdout.write(f"{check}\n")
            sys.stdout.flush()
    if failed:
        raise UserError(f"{failed} checks failed on {os.uname().nodename}; the fix of each is in its line above.")
