"""What a training will need and how long it will take, said before it is started; nothing is trained."""

from dataclasses import dataclass

import torch

from fmad_dist.config import RunConfig
from fmad_dist.errors import UserError
from fmad_dist.features.backbones import Backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.networks.build import NetworkSpec, describe_network, network_spec
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.accelerators import ACCELERATORS, Accelerator, find_accelerator
from fmad_dist.training.budget import (
    RESERVED_BYTES,
    Layout,
    MemoryBudget,
    checkpoint_bytes,
    layout_of,
    memory_budget,
    what_would_fit,
)
from fmad_dist.training.data import open_data


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

    @property
    def images_per_s(self) -> float:
        """At the given utilisation of the accelerators' peak."""
        return self.mfu * self.accelerator.peak_flops * self.batch.world_size / self.cost.training_flops

    def hours(self, steps: int) -> float:
        """For so many steps at that speed."""
        return steps * self.batch.global_batch / self.images_per_s / 3600

    @property
    def capacity(self) -> int:
        return self.accelerator.memory - RESERVED_BYTES

    def lines(self) -> list[str]:
        """The report."""
        memory, cost, batch = self.memory, self.cost, self.batch
        steps = self.config.train.steps
        sizes = {name: getattr(memory, name) for name in MemoryBudget.__slots__}
        parts = ", ".join(f"{name} {gib(size)}" for name, size in sizes.items() if size)
        precision = str(self.layout.dtype).removeprefix("torch.")
        machines = f"{self.nodes} nodes x {self.gpus} {self.accelerator.name}"
        dealt = f"{batch.world_size} processes x {batch.micro_batch} x {batch.accumulation} accumulated"
        saved = checkpoint_bytes(cost)
        rows = {
            "job": f"{machines}, ZeRO-{self.layout.zero_stage}, {precision}",
            "network": f"{describe_network(self.spec)}, {cost.num_parameters / 1e6:.1f} M parameters",
            "batch": f"{batch.global_batch} = {dealt}",
            "memory per GPU": f"{gib(memory.total)} of {gib(self.capacity)} ({parts})",
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
        """Raises:
        UserError: it does not fit; says what would.
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
    """Raises:
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
    return Forecast(config, nodes, gpus, accelerator, mfu, spec, cost, batch, data.epoch_size, layout, memory)


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
