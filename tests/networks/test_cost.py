"""The traced cost against closed forms and against what a real forward pass keeps."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from fmad_dist.networks.build import NetworkSpec, build_network
from fmad_dist.networks.cost import network_cost
from fmad_dist.networks.dit import PRESETS, DiTSpec
from fmad_dist.networks.unet import UNetSpec

CHANNELS, GRID = 48, 8


def dit(preset: str) -> DiTSpec:
    return DiTSpec(CHANNELS, GRID, *PRESETS[preset])


def really_kept(spec: NetworkSpec, dtype: torch.dtype, checkpointing: bool, batch: int) -> int:
    """Bytes that the backward pass of a real network holds on to, without the weights."""
    network = build_network(spec, checkpointing).to(dtype).train()
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(batch, spec.channels, spec.grid, spec.grid, dtype=dtype), torch.rand(batch))
    weights = {one.untyped_storage()._cdata for one in network.parameters()}
    return sum(one.untyped_storage().nbytes() for key, one in kept.items() if key not in weights)


@pytest.mark.parametrize("preset", ["tiny", "B", "G"])
def test_flops_and_parameters_of_a_dit(preset: str) -> None:
    """Two per multiply-add: 24 N D^2 + 4 N^2 D per block on N tokens, 12 D^2 for its modulation."""
    width, depth, _ = PRESETS[preset]
    tokens = GRID**2
    block = 24 * tokens * width**2 + 4 * tokens**2 * width + 12 * width**2
    ends = 4 * tokens * CHANNELS * width + 2 * 256 * width + 2 * width**2 + 4 * width**2
    cost = network_cost(dit(preset), torch.bfloat16)
    assert cost.forward_flops == depth * block + ends
    assert cost.training_flops == 3 * cost.forward_flops
    with torch.device("meta"):
        assert cost.num_parameters == sum(one.numel() for one in build_network(dit(preset)).parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [dit("tiny"), UNetSpec(16, 8, 32, (1, 2), 1)], ids=["dit", "unet"])
def test_activations_are_what_a_real_pass_keeps(spec: NetworkSpec, dtype: torch.dtype, checkpointing: bool) -> None:
    cost = network_cost(spec, dtype, checkpointing)
    for batch in (2, 6):
        assert cost.activation_bytes * batch == pytest.approx(really_kept(spec, dtype, checkpointing, batch), rel=0.02)
