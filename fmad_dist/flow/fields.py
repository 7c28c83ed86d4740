"""A trained network as the field that scorers walk in: in the forward direction, with the same bits per image."""

import torch
from torch import Tensor, nn

from fmad_dist.flow.paths import AffinePath


class Field:
    """What a network answers, whatever path it was trained on.

    For a velocity network `field(x, t)` is the forward velocity (noise at t = 0, data at t = 1); a reversed network is
    read as v_fwd(x, t) = -v_rev(x, 1 - t). For a noise network it is the predicted noise at the path's own time.

    On a CPU, images are run one by one: as fast as in a batch, and the bits of an image's scores do not depend on the
    batch it came in. Elsewhere the whole batch goes at once.

    The network computes in the `dtype` of its weights; points and answers are float32.
    """

    def __init__(self, network: nn.Module, path: AffinePath, dtype: torch.dtype = torch.float32) -> None:
        self.network = network.to(dtype)
        self.path = path
        self.dtype = dtype

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t [B] -> float32 [B, C, H, W]."""
        if self.path.name == "reversed":
            return -self._run(x, 1.0 - t)
        return self._run(x, t)

    def _run(self, x: Tensor, t: Tensor) -> Tensor:
        if x.device.type != "cpu" or len(x) == 1:
            return self._answer(x, t)
        return torch.cat([self._answer(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])

    def _answer(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x.to(self.dtype), t).float()
