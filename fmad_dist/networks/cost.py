"""What a network costs, by running it without data: parameters, floating-point operations, activations.

The network runs on torch's fake tensors, which have shapes but no content: it takes a second and no memory, for every
architecture.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fmad_dist.networks.build import NetworkSpec, build_network

BATCH = 2  # some operations treat a batch of one differently


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """Per image where not said otherwise."""

    num_parameters: int
    largest_parameter: int  # elements
    forward_flops: int  # a multiply-add is two; matrix products, convolutions and attention
    activation_bytes: int  # kept from the forward for the backward pass

    @property
    def training_flops(self) -> int:
        """Forward and backward pass; what checkpointing computes again is not counted."""
        return 3 * self.forward_flops


@lru_cache(maxsize=256)
def network_cost(spec: NetworkSpec, dtype: torch.dtype, checkpointing: bool = False) -> NetworkCost:
    """Cost of training the network with inputs and weights of `dtype`."""
    with torch.device("meta"):
        network = build_network(spec, checkpointing).train()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode():
        weights = {
            name: torch.empty(one.shape, dtype=dtype, requires_grad=True) for name, one in network.named_parameters()
        }
        buffers = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in network.named_buffers()}
        x = torch.empty(BATCH, spec.channels, spec.grid, spec.grid, dtype=dtype)
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(network, weights | buffers, (x, torch.empty(BATCH)))
        own = {weight.untyped_storage()._cdata for weight in weights.values()}
        saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    sizes = [weight.numel() for weight in weights.values()]
    return NetworkCost(sum(sizes), max(sizes), counter.get_total_flops() // BATCH, saved // BATCH)
