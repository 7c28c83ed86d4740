"""A trained network as the field that scorers integrate, and fixed-step solvers of dx/dt = v(x, t).

They go between any two times, in either direction. The bits of a field do not depend on the batch.
"""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fmad_dist.flow.paths import AffinePath

SolverName = Literal["euler", "midpoint", "heun"]
Velocity = Callable[[Tensor, Tensor], Tensor]  # v(x [B, ...], t [B]) -> [B, ...]

EVALUATIONS_PER_STEP: dict[SolverName, int] = {"euler": 1, "midpoint": 2, "heun": 2}


def integrate(
    velocity: Velocity, x: Tensor, start: float, stop: float, steps: int, solver: SolverName = "euler"
) -> Tensor:
    """Follow the field from x at time `start` to time `stop` in `steps` equal steps; x is [B, ...].

    Euler is of order 1, midpoint and Heun of order 2 with two evaluations per step.
    """
    times = torch.linspace(start, stop, steps + 1, dtype=torch.float64).tolist()
    for now, then in itertools.pairwise(times):
        x = x + (then - now) * _slope(velocity, x, now, then, solver)
    return x


def _slope(velocity: Velocity, x: Tensor, now: float, then: float, solver: SolverName) -> Tensor:
    def at(point: Tensor, time: float) -> Tensor:
        return velocity(point, torch.full((point.shape[0],), time, device=point.device))

    first = at(x, now)
    if solver == "euler":
        return first
    if solver == "midpoint":
        middle = (now + then) / 2
        return at(x + (middle - now) * first, middle)
    return (first + at(x + (then - now) * first, then)) / 2


class Field:
    """What a network predicts, whatever path it was trained on.

    For a velocity network `field(x, t)` is the forward velocity (noise at t = 0, data at t = 1); a reversed network is
    read as v_fwd(x, t) = -v_rev(x, 1 - t). For a noise network it is the predicted noise at the path's own time.

    On a CPU, images are run one by one: as fast as in a batch, and the bits of an image's scores do not depend on the
    batch it came in. Elsewhere the whole batch goes at once.

    The network computes in the `dtype` of its weights; points and predictions are float32.
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
            return self._predict(x, t)
        return torch.cat([self._predict(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x.to(self.dtype), t).float()
