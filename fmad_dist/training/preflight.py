"""What is said of a training before any process is started: what is wrong, what it will need and how long it will take.

Nothing is trained.
"""

from dataclasses import dataclass, fields

import torch

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig
from fmad_dist.features.backbones import Backbone, load_backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.networks.build import NetworkSpec, describe_network, network_spec
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.scoring.interface import method_of
from fmad_dist.storage.scratch import check_writable
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.budget import (
    RESERVED_BYTES,
    Layout,
    MemoryBudget,
    checkpoint_bytes,
    layout_of,
    memory_budget,
    what_would_fit,
)
from fmad_dist.training.checkpoint import Checkpoints, check_belongs
from fmad_dist.training.data import open_data
from fmad_dist.training.host_memory import LIBRARIES_BYTES, HostMemory, host_memory
from fmad_dist.training.ownership import check_free
from fmad_dist.training.throughput import ACCELERATORS, Accelerator, find_accelerator


def check_job(config: RunConfig, processes: int) -> None:
    """Check configuration, data, backbone, run directory and an existing checkpoint against each other.

    Raises:
        UserError: the first thing that would make the job fail.
    """
    reason = method_of(config.scorer).refusal(config.objective)
    if reason:
        raise UserError(f"scorer.name: {config.scorer.name} does not fit the objective: {reason}.")
    BatchLayout.fit(config.train.global_batch, config.train.micro_batch, processes)
    data = open_data(config)
    backbone = load_backbone(feature_spec(config.features), config.features.weights)
    newest = Checkpoints(config.checkpoint_url).newest_readable()
    if newest is not None:
        num_classes = len(data.mixture.class_names)
        network = network_spec(config.model, backbone.num_channels, config.features.grid, num_classes)
        check_belongs(newest, network, config.objective, data.digest)
    check_writable(config.run_dir, "`output`")
    check_free(config)


@dataclass(frozen=True)
class Forecast:
    """A job on `nodes` x `gpus` accelerators."""

    config: RunConfig
    nodes: int
    gpus: int
    accelerator: Accelerator
    mfu: float
    spec: NetworkSpec
    cost: NetworkCost
    batch: BatchLayout
    epoch_size: int | None
    layout: Layout
    memory: MemoryBudget
    host: HostMemory

    @property
    def images_per_s(self) -> float:
        """Images per second at the given utilisation of the accelerators' peak."""
        return self.mfu * self.accelerator.peak_flops * self.batch.world_size / self.cost.training_flops

    def hours(self, steps: int) -> float:
        """Hours for so many steps at that speed."""
        return steps * self.batch.global_batch / self.images_per_s / 3600

    @property
    def capacity(self) -> int:
        return self.accelerator.memory - RESERVED_BYTES

    def lines(self) -> list[str]:
        """Format the report, a line each."""
        memory, cost, batch = self.memory, self.cost, self.batch
        steps = self.config.train.steps
        precision = str(self.layout.dtype).removeprefix("torch.")
        machines = f"{self.nodes} nodes x {self.gpus} {self.accelerator.name}"
        dealt = f"{batch.world_size} processes x {batch.micro_batch} x {batch.accumulation} accumulated"
        saved = checkpoint_bytes(cost)
        rows = {
            "job": f"{machines}, ZeRO-{self.layout.zero_stage}, {precision}",
            "network": f"{describe_network(self.spec)}, {cost.num_parameters / 1e6:.1f} M parameters",
            "batch": f"{batch.global_batch} = {dealt}",
            "memory per GPU": f"{gib(memory.total)} of {gib(self.capacity)} ({_parts(memory)})",
            "memory of host": f"{gib(self.host.total)} per process, {gib(self.gpus * self.host.total)} per node "
            f"({_parts(self.host)}, libraries {gib(LIBRARIES_BYTES)}); a large index is mapped, and not counted",
            "activations": "computed again in the backward pass" if self.layout.checkpointing else "kept",
            "compute": f"{cost.training_flops / 1e9:.1f} GFLOP per image, forward and backward",
            "speed": f"{self.images_per_s:,.0f} images/s at {self.mfu:.0%} of {self.accelerator.peak_flops / 1e12:.0f} "
            "TFLOP/s, if data and network keep up",
            "duration": f"{self.hours(steps):.2f} h for {steps} steps",
            "checkpoint": f"{gib(saved)}, {gib(saved // batch.world_size)} written by each process",
        }
        if self.epoch_size:
            rows["epoch"] = f"{self.epoch_size} images, {self.epoch_size / batch.global_batch:.1f} steps"
        return [f"{name:15} {text}" for name, text in rows.items()]

    def check(self) -> None:
        """Check that the job fits.

        Raises:
            UserError: it does not; says what would.
        """
        if self.memory.total <= self.capacity:
            return
        problem = f"{gib(self.memory.total)} per GPU do not fit into {gib(self.capacity)} of {self.accelerator.name}"
        other = what_would_fit(self.spec, self.layout, self.capacity)
        if other is None:
            raise UserError(f"{problem}, with no setting of this network; choose a smaller model.preset or more GPUs.")
        fix = f"train.zero_stage={other.zero_stage} train.micro_batch={other.micro_batch}"
        fix += f" model.checkpointing={str(other.checkpointing).lower()}"
        raise UserError(f"{problem}; {fix} needs {gib(memory_budget(self.spec, other).total)}.")


def forecast(config: RunConfig, nodes: int, gpus: int, gpu: str, mfu: float) -> Forecast:
    """Forecast memory, speed and duration of a run; `gpu` is an accelerator's name, `mfu` its utilisation, in (0, 1].

    Raises:
        UserError: the accelerator is unknown, the batch cannot be dealt evenly, or the data cannot be read.
    """
    accelerator = find_accelerator(gpu)
    if accelerator is None:
        raise UserError(f"--gpu {gpu}: not known; there is {', '.join(one.name for one in ACCELERATORS)}.")
    batch = BatchLayout.fit(config.train.global_batch, config.train.micro_batch, nodes * gpus)
    data = open_data(config)
    channels = Backbone(feature_spec(config.features)).num_channels
    spec = network_spec(config.model, channels, config.features.grid, len(data.mixture.class_names))
    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    layout = layout_of(config, spec, batch, dtype, accelerator.memory)
    cost, memory = network_cost(spec, dtype), memory_budget(spec, layout)
    mixture, shape = data.mixture, (channels, config.features.grid, config.features.grid)
    host = host_memory(config, batch, cost, shape, int(mixture.starts[-1]), len(mixture.class_names))
    return Forecast(config, nodes, gpus, accelerator, mfu, spec, cost, batch, data.epoch_size, layout, memory, host)


def _parts(memory: MemoryBudget | HostMemory) -> str:
    sizes = {field.name: getattr(memory, field.name) for field in fields(memory)}
    return ", ".join(f"{name} {gib(size)}" for name, size in sizes.items() if size)


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
