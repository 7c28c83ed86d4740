"""How much memory a process of a training needs, before it is started: ZeRO's arithmetic and traced activations.

Weights and gradients have b bytes per parameter (2 in bf16, 4 in fp32); masters, Adam's two moments, the average and
the reduced gradient are fp32. Rows that ZeRO divides are divided by the number of processes.
"""

from dataclasses import dataclass, replace

import torch

from fmad_dist.networks.build import NetworkSpec
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.training.engine import BUCKET_ELEMENTS, LIVE_ELEMENTS


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes of one process at the peak of a step, without the CUDA context and the backbone."""

    weights: int
    gradients: int
    optimizer: int  # fp32 masters, moments, average
    buffers: int  # of communication, and the reduced gradient in fp32
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations


@dataclass(frozen=True, slots=True)
class Layout:
    """What memory depends on beside the network."""

    zero_stage: int
    processes: int
    micro_batch: int
    checkpointing: bool
    dtype: torch.dtype


def memory_budget(spec: NetworkSpec, layout: Layout) -> MemoryBudget:
    """The budget of one process."""
    plain = network_cost(spec, layout.dtype)
    cost = network_cost(spec, layout.dtype, checkpointing=True) if layout.checkpointing else plain
    recomputed = plain.activation_bytes // max(1, getattr(spec, "depth", 1)) if layout.checkpointing else 0
    activations = layout.micro_batch * (cost.activation_bytes + recomputed)
    return _zero_budget(plain, layout, activations)


def _zero_budget(cost: NetworkCost, layout: Layout, activations: int) -> MemoryBudget:
    """What each ZeRO stage divides by the number of processes: 1 the optimizer, 2 gradients too, 3 weights too."""
    count, stage, world = cost.num_parameters, layout.zero_stage, layout.processes
    size = layout.dtype.itemsize
    bucket = size * min(BUCKET_ELEMENTS, count)
    part = -(-count // world)
    live = size * min(count, LIVE_ELEMENTS + cost.largest_parameter)  # gathered for the layers at work
    return MemoryBudget(
        weights=size * (count if stage < 3 else part) + (live if stage == 3 and world > 1 else 0),
        gradients=size * (count if stage < 2 else part),
        optimizer=16 * part,
        buffers=bucket + 4 * part,
        activations=activations,
    )


def checkpoint_bytes(cost: NetworkCost) -> int:
    """Weights, average and two moments in fp32."""
    return 16 * cost.num_parameters


def what_would_fit(spec: NetworkSpec, layout: Layout, capacity: int) -> Layout | None:
    """The first change that fits, the cheapest in speed first: ZeRO-2, checkpointing, ZeRO-3, then smaller batches."""
    batch = layout.micro_batch
    while batch >= 1:
        for stage, checkpointing in ((2, False), (2, True), (3, True)):
            one = replace(
                layout,
                micro_batch=batch,
                zero_stage=max(stage, layout.zero_stage),
                checkpointing=checkpointing or layout.checkpointing,
            )
            if memory_budget(spec, one).total <= capacity:
                return one
        batch //= 2
    return None
