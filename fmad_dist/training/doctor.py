"""Checks before hours are spent: each is one line that says what is wrong and how to repair it. Every rank calls."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.features.backbones import Backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.networks.build import network_spec
from fmad_dist.networks.cost import network_cost
from fmad_dist.storage import Store
from fmad_dist.tracking.database import failures
from fmad_dist.tracking.server import connect, shown_uri, tracking_uri
from fmad_dist.training.budget import checkpoint_bytes
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.training.data import open_data

PACKAGES = ("fmad-dist", "torch", "accelerate", "deepspeed", "numpy", "timm")
MAX_SKEW_S = 5.0
FREE_BYTES = 10 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `problem` None means it passed."""

    name: str
    found: str
    problem: str | None = None

    def __str__(self) -> str:
        return f"ok    {self.name}: {self.found}" if self.problem is None else f"FAIL  {self.name}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Node:
    """What one process says of itself and its node; `time` is in seconds since the epoch."""

    node: int
    versions: str
    gpus: str
    time: float


def run_doctor(config: RunConfig, world: World) -> None:
    """Make all checks and print each line as it comes.

    Raises:
        UserError: a check failed.
    """
    world.join()
    try:
        report(examine(config, world), world)
    finally:
        world.leave()


def report(checks: Iterator[Check], world: World) -> None:
    """Print the checks on the main rank. Raises UserError if one failed."""
    failed = 0
    for check in checks:
        failed += check.problem is not None
        if world.is_main:
            print(check, flush=True)
    if failed:
        raise UserError(f"{failed} checks failed on {os.uname().nodename}; the fix of each is in its line above.")


def examine(config: RunConfig, world: World) -> Iterator[Check]:
    """All checks, the same on all ranks, which have met already: addresses and ports are right."""
    software, hardware = versions(), gpus()
    world.barrier()  # the clocks are read right after all have met
    found = world.gather(Node(world.node, software, hardware, time.time()))
    nodes = 1 + max(one.node for one in found)
    yield Check("processes", f"{world.size} on {nodes} nodes have met")
    yield same_everywhere("versions", [one.versions for one in found], "install the same versions on all nodes")
    yield check_gpus([one.gpus for one in found], [one.node for one in found])
    yield check_clocks([one.time for one in found])
    yield from check_storages(config, world)
    yield check_disks(world.gather((platform.node(), free_bytes(config))))
    if "://" in config.checkpoint_url:
        size = world.broadcast(checkpoint_size(config) if world.is_main else 0)
        yield check_temporary(world.gather((platform.node(), shutil.disk_usage(tempfile.gettempdir()).free)), size)
    tracking = world.broadcast(check_tracking(config) if world.is_main else None)
    assert tracking is not None
    yield tracking


def versions() -> str:
    """Python and the packages that must agree."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *found])


def gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}" if names else "none"


def same_everywhere(name: str, values: Sequence[str], fix: str) -> Check:
    """Whether all ranks say what rank 0 says; the problem names what the first other one has instead."""
    for rank, value in enumerate(values):
        if value != values[0]:
            theirs = ", ".join(sorted(set(value.split(", ")) - set(values[0].split(", "))))
            ours = ", ".join(sorted(set(values[0].split(", ")) - set(value.split(", "))))
            return Check(name, "", f"rank {rank} has {theirs}, rank 0 has {ours}; {fix}")
    return Check(name, values[0])


def check_gpus(found: Sequence[str], nodes: Sequence[int]) -> Check:
    """Whether every node has the same GPUs, and one for each of its processes; `nodes` are those of the ranks."""
    check = same_everywhere("GPUs per node", found, "use equal nodes, or other values of --num_processes")
    per_node = max(list(nodes).count(node) for node in nodes)
    if check.problem is None and found[0] != "none" and int(found[0].split()[0]) < per_node:
        return Check(check.name, "", f"{per_node} processes per node for {found[0]}; start one process per GPU")
    return check


def check_clocks(times: Sequence[float]) -> Check:
    """Whether clocks agree to 5 s, which signatures of storage requests and the order of log lines need."""
    skew = max(times) - min(times)
    late = times.index(max(times))
    fix = f"rank {late} is {skew:.0f} s ahead; start chrony or ntpd on all nodes"
    return Check("clocks", f"{skew:.2f} s apart", fix if skew > MAX_SKEW_S else None)


def check_storages(config: RunConfig, world: World) -> Iterator[Check]:
    """Whether manifests can be read; checkpoints and the feature cache written, read by all nodes and deleted."""
    for url in config.data.manifests:
        yield on_all_ranks(f"read {url}", world.gather(refusal_of(partial(Store(url).read, "manifest.json"))))
    for url in filter(None, (config.checkpoint_url, config.features.cache)):
        name = f".fmad-doctor-{world.broadcast(uuid.uuid4().hex)}"
        yield on_all_ranks(f"write, read and delete {url}", shared_file(Store(url), name, world))


def shared_file(store: Store, name: str, world: World) -> list[str | None]:
    """Write a file on every rank, read that of the next rank and delete it; the problem of each rank, or None."""

    def read_next() -> None:
        following = f"{name}-{(world.rank + 1) % world.size}"
        if not store.exists(following):
            raise UserError(
                f"{store.url_of(following)}: written by another process and not seen here; all need the same storage."
            )
        store.read(following)

    mine = f"{name}-{world.rank}"
    problems = [refusal_of(lambda: store.write(mine, b"fmad"))]
    world.barrier()
    problems.append(refusal_of(read_next))
    world.barrier()
    problems.append(refusal_of(lambda: store.remove(mine)))
    return world.gather(next((one for one in problems if one), None))


def refusal_of(action: Callable[[], object]) -> str | None:
    """The sentence of the `UserError` that an action raises, or None."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def on_all_ranks(name: str, problems: Sequence[str | None]) -> Check:
    """One check of what all ranks have tried; it shows the problem of the first rank that has one."""
    bad = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    return Check(name, f"by {len(problems)} processes", bad[0] if bad else None)


def free_bytes(config: RunConfig) -> int:
    """What is free on the fullest local disk that a run writes to."""
    folders = [config.output, config.checkpoint_url, *filter(None, (config.features.cache, config.data.cache))]
    return min(shutil.disk_usage(existing(Path(one))).free for one in folders if "://" not in one)


def existing(path: Path) -> Path:
    """The path or the nearest folder above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def check_disks(found: Sequence[tuple[str, int]]) -> Check:
    """Whether the fullest disk has 10 GiB left; `found` is (node, free bytes) of each rank."""
    node, free = min(found, key=lambda one: one[1])
    fix = f"{free / 2**30:.1f} GiB left on {node}; make it {FREE_BYTES >> 30}, or set train.checkpoint_url to a bucket"
    return Check("free disk", f"{free / 2**30:.0f} GiB on the fullest node", fix if free < FREE_BYTES else None)


def checkpoint_size(config: RunConfig) -> int:
    """Bytes of the run's newest checkpoint, or of its first one; 0 if its storage or data cannot be read, which has a
    line of its own."""
    try:
        newest = Checkpoints(config.checkpoint_url).newest_readable()
        if newest is not None:
            return sum(file.num_bytes for file in newest.files.values())
        channels, classes = Backbone(feature_spec(config.features)).num_channels, open_data(config).mixture.class_names
        spec = network_spec(config.model, channels, config.features.grid, len(classes))
        return checkpoint_bytes(network_cost(spec, torch.float32))
    except UserError:
        return 0


def check_temporary(found: Sequence[tuple[str, int]], size: int) -> Check:
    """Whether a node can resume, which brings a checkpoint of `size` bytes to its temporary folder; `found` is (node,
    free bytes) of each rank."""
    node, free = min(found, key=lambda one: one[1])
    fix = f"{free / 2**30:.1f} GiB left on {node}, a resume needs {size / 2**30:.1f}; set TMPDIR to a larger disk"
    return Check("temporary folder", f"{free / 2**30:.0f} GiB on the fullest node", fix if free < size else None)


def check_tracking(config: RunConfig) -> Check:
    """Whether the MLflow server lets us create, log, register and delete, as a training will."""
    if not config.tracking.mlflow:
        return Check("MLflow", "off (tracking.mlflow=false)")
    uri = shown_uri(config)
    doing = "connect"
    name = f"fmad-doctor-{uuid.uuid4().hex[:8]}"
    try:
        client = connect(tracking_uri(config))
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
    except UserError as error:  # the database cannot be used
        return Check("MLflow", "", str(error))
    except failures() as error:
        fix = "start the server, correct tracking.uri, or ask for the permission"
        return Check("MLflow", "", f"{uri} does not let us {doing} ({first_line(error)}); {fix}")
    return Check("MLflow", f"{uri}: create, log, register")
