"""What training uses of accelerate's and DeepSpeed's objects, as protocols: neither library ships types."""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from fmad_dist.networks.build import Network


class DeepSpeedPlugin(Protocol):
    @property
    def deepspeed_config(self) -> dict[str, Any]: ...  # DeepSpeed's JSON


class AcceleratorState(Protocol):
    @property
    def deepspeed_plugin(self) -> DeepSpeedPlugin: ...


class Accelerate(Protocol):
    """accelerate.Accelerator."""

    @property
    def device(self) -> torch.device: ...
    @property
    def distributed_type(self) -> str: ...
    @property
    def num_processes(self) -> int: ...
    @property
    def state(self) -> AcceleratorState: ...
    def prepare(self, network: Network, optimizer: torch.optim.Optimizer) -> tuple["DeepSpeedEngine", object]: ...
    def reduce(self, tensor: Tensor, reduction: str) -> Tensor: ...
    def end_training(self) -> None: ...


class ZeroOptimizer(Protocol):
    """DeepSpeed's optimizer of any ZeRO stage."""

    optimizer: torch.optim.Optimizer  # AdamW over the flat fp32 partitions of this rank
    param_groups: list[dict[str, Any]]
    overflow: bool  # whether the last step was left out, on all ranks
    dp_process_group: dist.ProcessGroup
    single_partition_of_fp32_groups: list[Tensor]  # ZeRO-1 and 2: this rank's master weights, flat per group
    fp32_partitioned_groups_flat: list[Tensor]  # ZeRO-3: the same


@runtime_checkable
class PartitionedParameter(Protocol):
    """A parameter that ZeRO-3 has split over the ranks."""

    ds_id: int
    ds_process_group: dist.ProcessGroup

    def partition_numel(self) -> int: ...  # elements of a rank's part, the last one padded


class DeepSpeedEngine(Protocol):
    """deepspeed.DeepSpeedEngine over a network of ours; a call runs the network."""

    @property
    def module(self) -> Network: ...
    @property
    def optimizer(self) -> ZeroOptimizer: ...
    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor: ...
    def backward(self, loss: Tensor) -> object: ...
    def step(self) -> None: ...
    def get_global_grad_norm(self) -> float | Tensor | None: ...
    def gradient_accumulation_steps(self) -> int: ...
    def zero_optimization_stage(self) -> int: ...
