"""Mismatch score: how far the predicted velocity is from the one that leads to the image [Flow Mismatching]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.flow.noise import keyed_noise
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Scorer, ScoringMethod, Trained
from fmad_dist.scoring.maps import top_mean


class MismatchConfig(ScoringMethod):
    name: Literal["mismatch"] = "mismatch"
    noises: int = Field(8, ge=1, description="noise draws K per image and time")
    times: int = Field(8, ge=1, description="number T of times t_j = j / (T + 1)")
    grid: tuple[float, ...] = Field((), description="times themselves, each in (0, 1); empty = the T above")
    aggregate: Literal["min", "quantile", "mean"] = Field("min", description="over the K draws at each time")
    quantile: float = Field(0.1, ge=0.0, le=1.0, description="aggregate quantile: which, 0.1 = p10")
    weighted: bool = Field(True, description="weight the times by t^2, which cancels the 1 / t^2 of the noise")
    postprocess: Literal["protocol", "paper"] = Field(
        "protocol", description="paper: image score = maximum + mean of the top 1 %"
    )

    @field_validator("grid")
    @classmethod
    def _inside(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < t < 1.0 for t in grid):
            raise ValueError("every time must be inside (0, 1); at t = 1 there is no noise left to disagree about")
        return grid

    def build(self, trained: Trained) -> "Mismatch":
        return Mismatch(
            self.noises,
            self.grid or paper_times(self.times),
            aggregate=self.aggregate,
            quantile=self.quantile,
            weighted=self.weighted,
            seed=trained.seed,
            paper=self.postprocess == "paper",
        )

    @property
    def draws_noise(self) -> bool:
        return True

    def refusal_as_part(self, objective: ObjectiveConfig) -> str | None:
        if self.postprocess == "paper":
            return f"its part {self.name} has postprocess paper, which rescales every image by itself"
        return super().refusal_as_part(objective)

    def check_change(self, calibrated: ScorerConfig) -> None:
        if not isinstance(calibrated, MismatchConfig) or "mean" in (self.aggregate, calibrated.aggregate):
            return
        if self.noises != calibrated.noises:
            raise UserError(
                f"scorer.noises: {self.noises}, but this model was calibrated with {calibrated.noises}, and the "
                f"{self.aggregate} over draws depends on their number; keep {calibrated.noises}, or let `fmad compare` "
                "calibrate anew."
            )


def paper_times(count: int) -> tuple[float, ...]:
    """t_j = j / (T + 1), j = 1 ... T: inside (0, 1), never 1."""
    return tuple(j / (count + 1) for j in range(1, count + 1))


@dataclass(frozen=True)
class Mismatch(Scorer):
    """r = sum over channels of (v(x_t, t) - (x - e))^2 at `noises` draws e and the given times.

    The draws are aggregated at each time by their minimum, a quantile or their mean, and the times averaged with weight
    t^2, which cancels the 1 / t^2 of the field [Flow Mismatching]. Draw k of an image is keyed by (seed, image key, k)
    and is the same at all times. The minimum falls with the number of draws, so calibration and test need the same.
    `paper` takes the paper's image score: maximum plus mean of the top 1 % of the map.
    """

    noises: int
    times: Sequence[float]
    aggregate: Literal["min", "quantile", "mean"] = "min"
    quantile: float = 0.1
    weighted: bool = True
    seed: int = 0
    paper: bool = False

    def __post_init__(self) -> None:
        assert all(0.0 < t < 1.0 for t in self.times)

    @property
    def evaluations(self) -> int:
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

    def image_scores(self, maps: Tensor, protocol: Protocol) -> Tensor:
        return maps.amax(dim=(1, 2)) + top_mean(maps, 1.0) if self.paper else super().image_scores(maps, protocol)

    def _error(self, velocity: Velocity, x: Tensor, noise: Tensor, t: Tensor, time: float) -> Tensor:
        return (velocity(time * x + (1.0 - time) * noise, t) - (x - noise)).square().sum(dim=1)

    def _aggregated(self, errors: Tensor) -> Tensor:
        if self.aggregate == "mean":
            return errors.mean(dim=0)
        return errors.amin(dim=0) if self.aggregate == "min" else errors.quantile(self.quantile, dim=0)

    def _noise(self, x: Tensor, keys: Sequence[int], draw: int) -> Tensor:
        return keyed_noise(self.seed, keys, x.shape[1:], x.device, draw)
