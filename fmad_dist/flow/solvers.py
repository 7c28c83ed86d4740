"""Fixed-step solvers of dx/dt = v(x, t) between any two times, in either direction."""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

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
