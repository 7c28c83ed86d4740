"""How much memory a process of a training needs, before it is started: ZeRO's arithmetic and traced activations.

Weights and gradients have b bytes per parameter (2 in bf16, 4 in fp32); masters, Adam's two moments and the average are
fp32. Rows that ZeRO divides are divided by the number of processes. The rows were checked against the allocations of
DeepSpeed's engines (benchmarks/training/memory.py).
"""

from dataclasses import dataclass, replace

import torch

from fmad_dist.config.run import RunConfig
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.engine import AHEAD_ELEMENTS, LIVE_ELEMENTS, compiles
from fmad_dist.training.gradients import bucket_elements

COMPILED_SHARE = 16 / 20  # of what a DiT block keeps: values per token and channel, counted with and without
RESERVED_BYTES = 3 << 30  # CUDA context, communication library, allocator's slack and the backbone


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
    compiled: bool = False


def memory_budget(spec: NetworkSpec, layout: Layout) -> MemoryBudget:
    """Estimate the bytes of one process."""
    plain = network_cost(spec, layout.dtype)
    block = plain.activation_bytes // max(1, getattr(spec, "depth", 1))
    if layout.checkpointing:
        activations = network_cost(spec, layout.dtype, checkpointing=True).activation_bytes + block
    elif layout.compiled and isinstance(spec, DiTSpec):
        activations = int(COMPILED_SHARE * plain.activation_bytes) + block
    else:
        activations = plain.activation_bytes
    return _zero_budget(plain, layout, layout.micro_batch * activations)


def layout_of(
    config: RunConfig, spec: NetworkSpec, batch: BatchLayout, dtype: torch.dtype, memory: int | None
) -> Layout:
    """Choose the layout of a run on GPUs of `memory` bytes (None: on a CPU).

    Where the configuration leaves it open, activations are computed again in the backward pass only if they would not
    fit otherwise: it costs a quarter of the speed.
    """
    dealt = (batch.world_size, batch.micro_batch, batch.accumulation)
    compiled = compiles(config.train, on_gpu=memory is not None)
    layout = Layout(config.train.zero_stage, *dealt, bool(config.model.checkpointing), dtype, compiled)
    if config.model.checkpointing is None and memory is not None:
        fits = memory_budget(spec, layout).total <= memory - RESERVED_BYTES
        return replace(layout, checkpointing=not fits)
    return layout


def _zero_budget(cost: NetworkCost, layout: Layout, activations: int) -> MemoryBudget:
    """Divide by the number of processes what the stage does: 1 the optimizer, 2 gradients too, 3 weights too."""
    count, stage, size = cost.num_parameters, layout.zero_stage, layout.dtype.itemsize
    part = -(-count // layout.processes)
    bucket = size * bucket_elements(count, stage, layout.processes)
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
        live, ahead = LIVE_ELEMENTS + cost.largest_parameter, AHEAD_ELEMENTS + cost.largest_parameter
        gathered = size * (min(count, live) + min(count, ahead)) if layout.processes > 1 else 0
        phases = [(owned, bucket + gathered, activations), (owned + 4 * part, bucket, 0)]
    return MemoryBudget(weights, optimizer, *max(phases, key=sum))


def checkpoint_bytes(cost: NetworkCost) -> int:
    """Bytes of a checkpoint: weights, average and two moments in fp32."""
    return 16 * cost.num_parameters


def what_would_fit(spec: NetworkSpec, layout: Layout, capacity: int) -> Layout | None:
    """Return the first change that fits, cheapest in speed first: ZeRO-2, checkpointing, ZeRO-3, smaller batches."""
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
