"""A network by its configuration or by the specification stored with its weights."""

import os
import shutil

import torch

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ModelConfig
from fmad_dist.networks.dit import PRESETS, DiT, DiTSpec
from fmad_dist.networks.unet import UNet, UNetSpec

NetworkSpec = DiTSpec | UNetSpec
Network = DiT | UNet  # each with its `spec`


def network_spec(config: ModelConfig, channels: int, grid: int, num_classes: int = 0) -> NetworkSpec:
    """The network of a configuration for inputs [B, channels, grid, grid]."""
    classes = num_classes if config.use_labels else 0
    if config.network == "unet":
        return UNetSpec(channels, grid, config.width, config.levels, config.blocks, classes)
    return DiTSpec(channels, grid, *PRESETS[config.preset], classes, config.patch, config.skip)


def build_network(spec: NetworkSpec, checkpointing: bool = False) -> Network:
    """A network with new weights; with `checkpointing` the backward pass of training computes activations again."""
    return UNet(spec, checkpointing) if isinstance(spec, UNetSpec) else DiT(spec, checkpointing)


def compile_network(network: Network, scoring: bool = False) -> None:
    """Compile the network in place; compilation happens at the first batch.

    Of a DiT only the block is compiled, once for all blocks: compiling the whole takes as many times longer as it is
    deep. With `scoring` the batch size may vary and a graph may be run backwards several times, as density does.

    Raises:
        UserError: torch's compiler finds no C or C++ compiler, and would fail at the first batch.
    """
    variable, names = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", ("g++",))
    if not any(map(shutil.which, [os.environ[variable]] if variable in os.environ else names)):
        raise UserError(
            f"torch.compile needs a compiler and finds none: install {names[0]}, let {variable} name another one, or "
            "do without (train.compile=off; no --compile)."
        )
    if scoring:
        from torch._functorch import config as functorch

        functorch.donated_buffer = False
    for part in network.blocks if isinstance(network, DiT) else [network]:
        part.compile(dynamic=scoring)


def describe_network(spec: NetworkSpec) -> str:
    """One line for reports."""
    if isinstance(spec, UNetSpec):
        levels = ", ".join(str(spec.width * factor) for factor in spec.levels)
        return f"U-Net with {levels} channels on {spec.channels} x {spec.grid} x {spec.grid}"
    tokens = spec.grid // spec.patch
    skip = "" if spec.skip == "none" else f", {spec.skip} skip"
    return f"DiT {spec.width}x{spec.depth} on {tokens}x{tokens} tokens{skip}"
