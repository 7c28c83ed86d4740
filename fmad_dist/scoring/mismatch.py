"""Mismatch score: how far the predicted velocity is from the one that leads to the image [Flow Mismatching]."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fmad_dist.flow.noise import keyed_noise
from fmad_dist.flow.solvers import Velocity


def paper_times(count: int) -> tuple[float, ...]:
    """t_j = j / (T + 1), j = 1 ... T: inside (0, 1), never 1."""
    return tuple(j / (count + 1) for j in range(1, count + 1))


class Mismatch:
    """r = sum over channels of (v(x_t, t) - (x - e))^2 at `noises` draws e and the given times.

    The draws are aggregated at each time by their minimum, a quantile or their mean, and the times averaged with weight
    t^2, which cancels the 1 / t^2 of the field [Flow Mismatching]. Draw k of an image is keyed by (seed, image key, k)
    and is the same at all times. The minimum falls with the number of draws, so calibration and test need the same.
    """

    def __init__(
        self,
        noises: int,
        times: Sequence[float],
        aggregate: Literal["min", "quantile", "mean"] = "min",
        quantile: float = 0.1,
        weighted: bool = True,
        seed: int = 0,
    ) -> None:
        assert all(0.0 < t < 1.0 for t in times)
        self.noises = noises
        self.times = tuple(times)
        self.aggregate = aggregate
        self.quantile = quantile
        self.weighted = weighted
        self.seed = seed

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.noises * len(self.times)

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] and one key per image -> scores [B, H, W] >= 0."""
        draws = [self._noise(x, keys, draw) for draw in range(self.noises)]
        total = torch.zeros_like(x[:, 0])
        for time in self.times:
            t = torch.full((len(x),), time, device=x.device)
            errors = torch.stack([self._error(velocity, x, noise, t, time) for noise in draws])  # [K, B, H, W]
            total += (time**2 if self.weighted else 1.0) * self._aggregated(errors)
        return total / len(self.times)

    def _error(self, velocity: Velocity, x: Tensor, noise: Tensor, t: Tensor, time: float) -> Tensor:
        return (velocity(time * x + (1.0 - time) * noise, t) - (x - noise)).square().sum(dim=1)

    def _aggregated(self, errors: Tensor) -> Tensor:
        if self.aggregate == "mean":
            return errors.mean(dim=0)
        return errors.amin(dim=0) if self.aggregate == "min" else errors.quantile(self.quantile, dim=0)

    def _noise(self, x: Tensor, keys: Sequence[int], draw: int) -> Tensor:
        return keyed_noise(self.seed, keys, x.shape[1:], x.device, draw)
