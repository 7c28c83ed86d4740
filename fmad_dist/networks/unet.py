"""A convolutional U-Net after ADM (Dhariwal and Nichol, 2021), from diffusers.

Flow Mismatching uses one on RGB pixels (64 base channels), WT-Flow a small one on an 8 x 8 feature map (width 128).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class UNetSpec:
    """Shape of a U-Net. `num_classes` 0 means there is no class input; `levels` are width factors, finest first."""

    channels: int
    grid: int
    width: int
    levels: tuple[int, ...]
    blocks: int
    num_classes: int = 0
    kind: Literal["unet"] = "unet"


class UNet(nn.Module):
    """v(x, t, y): x (B, C, H, W), t (B,) in [0, 1], y (B,) int64 class or None -> velocity (B, C, H, W).

    Self-attention at the coarsest level alone. The class is optional as in the DiT: `num_classes` means "unknown".
    """

    def __init__(self, spec: UNetSpec, checkpointing: bool = False) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # slow to import, and only needed here

        self.spec = spec
        plain = len(spec.levels) - 1
        make: Any = UNet2DModel
        net = make(
            sample_size=spec.grid,
            in_channels=spec.channels,
            out_channels=spec.channels,
            block_out_channels=tuple(spec.width * factor for factor in spec.levels),
            layers_per_block=spec.blocks,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            num_class_embeds=spec.num_classes + 1 if spec.num_classes else None,
        )
        if checkpointing:
            net.enable_gradient_checkpointing()
        nn.init.zeros_(net.conv_out.weight)  # the output starts at zero, as the DiT's
        nn.init.zeros_(net.conv_out.bias)
        self.net: nn.Module = net

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        labels = None
        if self.spec.num_classes:
            labels = torch.full((x.shape[0],), self.spec.num_classes, device=x.device) if y is None else y
        return self.net(x, 1000.0 * t.float(), class_labels=labels, return_dict=False)[0]
