"""Diffusion transformer on a token grid: adaLN-Zero, fixed 2-D positions (Peebles and Xie, 2023).

Convention: x is a feature map or image (B, C, H, W) outside and tokens (B, N, D) inside, D the width. A token is a
patch of P x P positions, so N = H * W / P^2; P is 1 on features.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmad_dist.config.run import SkipName


@dataclass(frozen=True, slots=True)
class DiTSpec:
    """Shape of a DiT on inputs (B, channels, grid, grid). `num_classes` 0 means there is no class input.

    `skip` adds g(t) * x to the output, one gain per value of a token: the last layer norm removes a token's norm, so
    without it the network cannot answer in proportion to x, as the field -(1 + a) x at the data demands [ours].
    """

    channels: int
    grid: int
    width: int
    depth: int
    heads: int
    num_classes: int = 0
    patch: int = 1
    skip: SkipName = "none"
    kind: Literal["dit"] = "dit"


# (width, depth, heads); tiny and small are ours, B to G are FlowAD's sizes
PRESETS: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 4, 3),
    "small": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
    "G": (2048, 16, 16),
}


class DiT(nn.Module):
    """v(x, t, y): x (B, C, H, W), t (B,) in [0, 1], y (B,) int64 class or None -> velocity (B, C, H, W).

    The class is optional always: entry `num_classes` of the embedding is "unknown" and is used when y is None.
    """

    positions: Tensor

    def __init__(self, spec: DiTSpec, checkpointing: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.checkpointing = checkpointing
        values = spec.channels * spec.patch**2  # of a token
        self.embed = nn.Linear(values, spec.width)
        self.time = TimeEmbedding(spec.width)
        self.label = nn.Embedding(spec.num_classes + 1, spec.width) if spec.num_classes else None
        self.blocks = nn.ModuleList([Block(spec.width, spec.heads) for _ in range(spec.depth)])
        self.final_modulation = nn.Linear(spec.width, 2 * spec.width)
        self.head = nn.Linear(spec.width, values)
        self.gain = nn.Linear(spec.width, values) if spec.skip != "none" else None
        self.register_buffer("positions", sincos_positions(spec.grid // spec.patch, spec.width), persistent=False)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x = F.pixel_unshuffle(x, self.spec.patch)  # (B, C P^2, H / P, W / P)
        height, width = x.shape[-2:]
        values = x.flatten(2).transpose(1, 2)  # (B, N, C P^2)
        tokens = self.embed(values) + self.positions.to(x.dtype)  # (B, N, D)
        condition = self.time(t, x.dtype)  # (B, D)
        if self.label is not None:
            unknown = torch.full((x.shape[0],), self.spec.num_classes, device=x.device)
            condition = condition + self.label(unknown if y is None else y)
        condition = F.silu(condition)
        for block in self.blocks:
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        out = self.head(modulate(tokens, shift, scale))  # (B, N, C P^2)
        if self.gain is not None:
            out = out + self._gains(condition, t)[:, None] * values
        out = out.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return F.pixel_shuffle(out, self.spec.patch)

    def _gains(self, condition: Tensor, t: Tensor) -> Tensor:
        """g(t) of the skip connection: (B, C P^2)."""
        assert self.gain is not None
        learned = self.gain(condition)
        if self.spec.skip == "learned":
            return learned
        return learned + gaussian_gain(t)[:, None].to(learned.dtype)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time.hidden, self.time.out):
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)
        gates = [module.modulation for module in self.modules() if isinstance(module, Block)]
        outputs = [self.final_modulation, self.head, *([self.gain] if self.gain is not None else [])]
        for layer in (*outputs, *gates):  # adaLN-Zero: blocks start as identity, output as 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)
        tokens = tokens + gate_a[:, None] * self.attend(modulate(tokens, shift_a, scale_a))
        hidden = F.gelu(self.up(modulate(tokens, shift_m, scale_m)), approximate="tanh")
        return tokens + gate_m[:, None] * self.down(hidden)

    def attend(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t through a two-layer MLP: (B,) -> (B, D).

    The rates are no buffer: a network in bfloat16 would round them, and angles of up to 1000 by more than a radian.
    """

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.hidden = nn.Linear(2 * frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angles = 1000.0 * t.float()[:, None] * 10_000.0**-steps
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.out(F.silu(self.hidden(waves)))


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without own parameters, then scale and shift per sample: (B, N, D)."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return normed * (1 + scale[:, None]) + shift[:, None]


def gaussian_gain(t: Tensor) -> Tensor:
    """g with v(x, t) = g x for data from N(0, I): the same for the forward and the reversed path. (B,) -> (B,)."""
    return (2 * t - 1) / (t.square() + (1 - t).square())


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D positions (grid * grid, width): half of the channels for the row, half for the column."""
    quarter = width // 4
    rates = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates  # (grid, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    rows = waves[:, None].expand(grid, grid, -1)
    columns = waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width).float()
