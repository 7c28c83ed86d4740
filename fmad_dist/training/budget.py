"""How much memory a process of a training needs, before it is started: ZeRO's arithmetic and traced activations.

Weights and gradients have b bytes per parameter (2 in bf16, 4 in fp32); masters, Adam's two moments and the average are
fp32. Rows that ZeRO divides are divided by the number of processes. The rows were checked against the allocations of
DeepSpeed's engines (benchmarks/training/memory.py).
"""

from dataclasses import dataclass, replace

import torch

from fmad_dist.networks.build import NetworkSpec
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.training.engine import BUCKET_ELEMENTS, LIVE_ELEMENTS, bucket_elements


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes of one process at the peak of a step, without the CUDA context and the backbone.

    Activations shrink while gradients grow, so this is what is largest at the start of the backward pass, at its end,
    or in the optimizer's step.
    """

    weights: int
    optimizer: int  # fp32 masters, moments, average
    gradients: int
    buffers: int  # gradients on their way, and weights gathered for the layers at work (ZeRO-3)
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
    accumulation: int  # micro batches per step
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
    count, stage, size = cost.num_parameters, layout.zero_stage, layout.dtype.itemsize
    part = -(-count // layout.processes)
    bucket = size * bucket_elements(count)
    owned = size * part  # gradients of this process's part
    weights, optimizer = size * (part if stage == 3 else count), 16 * part
    if stage < 3:
        # the bucket lives from the first gradient to the last; ZeRO-2 flattens it to send the parts away, and has by
        # then its part of what earlier buckets brought
        ends = (size * count, bucket) if stage == 1 else (owned - bucket // layout.processes, 2 * bucket)
        kept = (size * count if stage == 1 else owned) if layout.accumulation > 1 else 0  # of earlier micro batches
        phases = [(kept, bucket, activations), (*ends, 0), (owned + 4 * part, 0, 0)]
    else:
        # bucket and own gradients are never given back; what is fetched is held twice until it has been unpacked
        live, ahead = LIVE_ELEMENTS + cost.largest_parameter, BUCKET_ELEMENTS + cost.largest_parameter
        gathered = size * (min(count, live) + min(count, ahead)) if layout.processes > 1 else 0
        phases = [(owned, bucket + gathered, activations), (owned + 4 * part, bucket, 0)]
    return MemoryBudget(weights, optimizer, *max(phases, key=sum))


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
