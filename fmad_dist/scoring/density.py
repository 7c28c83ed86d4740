"""Density score: the negative log-likelihood of the image's features under the flow [FlowAD, eq. 1]."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.noise import keyed_signs
from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate
from fmad_dist.scoring.interface import Scorer, ScoringMethod, Trained


class DensityConfig(ScoringMethod):
    name: Literal["density"] = "density"
    steps: int = Field(5, ge=1, description="solver steps from the image to noise")
    solver: SolverName = Field("euler", description="solver of the flow's equation")
    probes: int = Field(10, ge=1, description="Rademacher probes of the divergence per evaluation")
    mask_stride: int = Field(
        1, ge=1, description="n > 1: a probe is split into n * n that touch every n-th row and column; less variance"
    )
    trace: Literal["hutchinson", "exact"] = Field(
        "hutchinson", description="exact = one product per dimension, for small inputs and as a reference"
    )
    chunk: int = Field(8, ge=1, description="images whose activations are held at a time")

    def build(self, trained: Trained) -> "Density":
        return Density(
            self.steps,
            self.probes,
            math.prod(trained.shape),
            solver=self.solver,
            mask_stride=self.mask_stride,
            trace=self.trace,
            chunk=self.chunk,
            seed=trained.seed,
        )

    def refusal(self, objective: ObjectiveConfig) -> str | None:
        if objective.coupling == "wt_soft":
            return "coupling wt_soft turns the noise, whose law is then no longer the N(0, I) of the likelihood"
        return super().refusal(objective)

    def export_refusal(self) -> str | None:
        return "takes derivatives of the network along random vectors, which an ONNX graph cannot"


@dataclass(frozen=True)
class Density(Scorer):
    """-log p(x) = -log N(x_0; 0, I) + integral over t in [0, 1] of div v(x_t, t), in nats at every location.

    Its sum over the locations is the image's -log p(x). The divergence is exact (one vector-Jacobian product per
    dimension) or Hutchinson's estimate with `probes` Rademacher vectors, drawn anew at every evaluation and keyed by
    (seed, image key, evaluation, probe). A probe's cross terms between locations are its noise; `mask_stride` n splits
    it into n * n vectors that touch every n-th row and column, so only distant locations can mix [ours].

    One graph per evaluation, first derivatives alone; memory is that of `chunk` images' activations.
    """

    steps: int
    probes: int
    dimensions: int  # C * H * W of an image
    solver: SolverName = "euler"
    mask_stride: int = 1
    trace: Literal["hutchinson", "exact"] = "hutchinson"
    chunk: int = 8
    seed: int = 0

    @property
    def evaluations(self) -> int:
        """Per image; a vector-Jacobian product counts as one."""
        products = self.dimensions if self.trace == "exact" else self.probes * self.mask_stride**2
        return self.steps * EVALUATIONS_PER_STEP[self.solver] * (1 + products)

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] and one key per image -> [B, H, W] in nats, any sign."""
        keys = list(keys)
        starts = range(0, len(x), self.chunk)
        return torch.cat([self._nats(velocity, x[s : s + self.chunk], keys[s : s + self.chunk]) for s in starts])

    def _nats(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        number = 0  # of this evaluation

        def augmented(state: Tensor, t: Tensor) -> Tensor:
            """The divergence rides along as one more channel, so it is integrated with the solver's own order."""
            nonlocal number
            slope, divergence = self._slope(velocity, state[:, :-1], t, keys, number)
            number += 1
            return torch.cat([slope, divergence[:, None]], dim=1)

        start = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        end = integrate(augmented, start, 1.0, 0.0, self.steps, self.solver)
        noise = end[:, :-1].square().sum(dim=1) / 2 + x.shape[1] * math.log(2 * math.pi) / 2
        return noise - end[:, -1]  # the last channel holds the integral from 1 to 0

    def _slope(
        self, velocity: Velocity, x: Tensor, t: Tensor, keys: Sequence[int], number: int
    ) -> tuple[Tensor, Tensor]:
        """v [B, C, H, W] and its divergence [B, H, W] at (x, t)."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.clone().requires_grad_(True)
            slope = velocity(point, t.clone())
            divergence = torch.zeros(x.shape[0], *x.shape[2:], device=x.device, dtype=x.dtype)
            for vector in self._vectors(point.detach(), keys, number):
                (product,) = torch.autograd.grad(slope, point, vector, retain_graph=True)
                divergence += (vector * product).sum(dim=1)
        weight = 1 if self.trace == "exact" else self.probes
        return slope.detach(), divergence.detach() / weight

    def _vectors(self, like: Tensor, keys: Sequence[int], number: int) -> Iterator[Tensor]:
        """The vectors p whose sum of p * (J^T p) over a location's channels estimates its part of the trace."""
        if self.trace == "exact":
            for dimension in range(like[0].numel()):
                vector = torch.zeros_like(like)
                vector.view(len(like), -1)[:, dimension] = 1.0
                yield vector
            return
        for probe in range(self.probes):
            signs = keyed_signs(self.seed, keys, like.shape[1:], like.device, number, probe).to(like.dtype)
            for row in range(self.mask_stride):
                for column in range(self.mask_stride):
                    if self.mask_stride == 1:
                        yield signs
                        continue
                    vector = torch.zeros_like(signs)
                    window = (..., slice(row, None, self.mask_stride), slice(column, None, self.mask_stride))
                    vector[window] = signs[window]
                    yield vector
