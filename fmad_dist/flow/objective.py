"""The training loss, and how noise is paired with data inside a rank's micro batch.

The loss is the mean squared error to the path's target, plain and unweighted [FlowAD, WT-Flow, InvAD].

Of the couplings, `ot` and the worst transports (`wt`) re-pair independent noise, so every noise value is used exactly
once; `wt_soft` turns each token's noise instead. Worst transport maximises E|x - e|^2, that is, it minimises <x, e>
[WT-Flow]; the paper does not publish its pairing, so every `wt` here is our reading of it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.noise import keyed_noise, keyed_times
from fmad_dist.flow.paths import PATHS

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x_t [B, C, H, W], t [B], labels [B] -> [B, C, H, W]


class FlowMatching:
    """Noise and times are keyed by (seed, stream position), so the number of processes does not change them.

    A coupling pairs noise inside the micro batch, without a collective, so it alone depends on the layout.
    """

    def __init__(self, config: ObjectiveConfig, seed: int) -> None:
        self.config = config
        self.path = PATHS[config.path]
        self.seed = seed
        self.strength = CouplingStrength()

    def loss(
        self, network: Velocity, x: Tensor, positions: Sequence[int], labels: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Mean over the batch of |network(x_t, t) - target|^2 per element; x is whitened float32 [B, C, H, W]."""
        noise = couple(x, keyed_noise(self.seed, positions, x.shape[1:], x.device), self.config)
        self.strength.update(x, noise)
        sample = self.path.sample(x, noise, self.times(positions).to(x.device))
        predicted = network(sample.x_t.to(dtype), sample.t, labels)
        return (predicted.float() - sample.target).square().mean()

    def times(self, positions: Sequence[int]) -> Tensor:
        """Training times float32 [len(positions)] in [0, 1] on the CPU: uniform, or sigmoid(mean + std * normal)."""
        uniform = keyed_times(self.seed, positions)
        if self.config.times == "uniform":
            return uniform
        from scipy.special import expit, ndtri

        logits = self.config.time_mean + self.config.time_std * ndtri(uniform.double().numpy())
        return torch.from_numpy(expit(logits).astype(np.float32))


def couple(x: Tensor, noise: Tensor, config: ObjectiveConfig) -> Tensor:
    """The noise [B, C, H, W] that belongs to data x [B, C, H, W] under the configured coupling."""
    if config.coupling == "independent":
        return noise
    if config.coupling in ("ot", "wt_sample"):
        sign = 1.0 if config.coupling == "wt_sample" else -1.0
        return noise[_assign(x.flatten(1), sign * noise.flatten(1))]
    if config.coupling == "wt_soft":
        return _from_tokens(soft(_tokens(x), _tokens(noise), config.strength), x)
    tokens, noises = _tokens(x), _tokens(noise)
    if config.coupling == "wt_group":
        parts = zip(tokens.split(config.group, dim=1), noises.split(config.group, dim=1), strict=True)
        pair = _sorted_against if config.group == 1 else _paired
        return _from_tokens(torch.cat([pair(own, free, config.window) for own, free in parts], dim=1), x)
    return _from_tokens(_paired(tokens, noises, config.window), x)


def soft(tokens: Tensor, noises: Tensor, strength: float) -> Tensor:
    """Rotate each token's noise until its cosine with the token is -strength; its length stays. [T, C] each.

    With u = x / |x| and e_perp the part of e across u, of length one: |e| (-l u + sqrt(1 - l^2) e_perp).
    """
    direction = tokens / tokens.norm(dim=1, keepdim=True).clamp_min(1e-12)
    across = noises - (noises * direction).sum(1, keepdim=True) * direction
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-12)
    turned = -strength * direction + (1.0 - strength**2) ** 0.5 * across
    return noises.norm(dim=1, keepdim=True) * turned


def windows(count: int, size: int) -> Iterator[slice]:
    """Consecutive windows of at most `size` that cover `count` and differ by at most one."""
    number = -(-count // size)
    bounds = [count * n // number for n in range(number + 1)]
    yield from (slice(start, stop) for start, stop in itertools.pairwise(bounds))


def _paired(tokens: Tensor, noises: Tensor, window: int) -> Tensor:
    """Minimise <x_i, e_j> by linear assignment in windows of consecutive tokens."""
    parts = [(tokens[part], noises[part]) for part in windows(len(tokens), window)]
    return torch.cat([free[_assign(own, free)] for own, free in parts])


def _sorted_against(tokens: Tensor, noises: Tensor, window: int) -> Tensor:
    """One channel [T, 1]: the smallest data gets the largest noise, which solves the assignment in one dimension."""
    order = tokens.argsort(dim=0, stable=True)
    return torch.empty_like(noises).scatter_(0, order, noises.sort(dim=0, descending=True).values)


def _assign(rows: Tensor, columns: Tensor) -> Tensor:
    """For each row its column in the assignment of smallest sum of inner products: [n, D], [n, D] -> int64 [n]."""
    from scipy.optimize import linear_sum_assignment

    cost = (rows.float() @ columns.float().T).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1].astype(np.int64)).to(rows.device)


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return tokens.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


class CouplingStrength:
    """a = -E<e, x> / E|x|^2 as a running ratio: 0 for independent noise, 1 for noise e = -x.

    In theory a reversed network predicts v(x, 0) = -(1 + a) x. The sums are those of this rank, and decay by `decay`
    with every micro batch.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.sums = torch.zeros(2, dtype=torch.float64)  # -<e, x> and |x|^2

    @torch.no_grad()
    def update(self, x: Tensor, noise: Tensor) -> None:
        """Add a micro batch of data and its noise, [B, C, H, W] each."""
        new = torch.stack([-(x * noise).sum(), x.square().sum()])
        self.sums = self.sums.to(x.device) * self.decay + new

    def load(self, sums: tuple[float, float]) -> None:
        """Go on from a state."""
        self.sums = torch.tensor(sums, dtype=torch.float64)

    def state(self) -> tuple[float, float]:
        """The sums -<e, x> and |x|^2."""
        cross, power = self.sums.tolist()
        return cross, power


def merged_strength(states: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean of the states of all ranks, in rank order, for every rank to go on from."""
    return (sum(s[0] for s in states) / len(states), sum(s[1] for s in states) / len(states))


def strength_of(sums: tuple[float, float]) -> float:
    """The ratio a of a state of `CouplingStrength`; 0 before the first micro batch."""
    return sums[0] / sums[1] if sums[1] else 0.0
