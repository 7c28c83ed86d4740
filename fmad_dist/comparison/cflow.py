"""CFlow-AD, a conditional normalizing flow per position, on the features that all scorers see [CFlow-AD, by anomalib].

Network, density and settings are anomalib's. What differs, so that only the method is compared: one decoder on the
detector's features instead of one per layer of a WideResNet, one model for all classes, our maps and image score.
"""

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmad_dist.flow.noise import keyed_generator
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Scorer

FIBERS = 64  # positions per optimizer step
CONDITION = 128  # length of the position code
BLOCKS = 8
CLAMP = 1.9
LEARNING_RATE = 1e-4


class CFlow(Scorer):
    """A scorer by minus log p(feature | position) per dimension. It has a network of its own and uses no flow field.

    anomalib shows exp(log p - maximum) with the maximum over the batch. That has the same order within a batch, but
    depends on the batch and underflows, so the exponent itself is the score here.
    """

    evaluations = 1

    def __init__(self, channels: int, grid: int, device: torch.device, seed: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other models of the package
            from anomalib.models.image.cflow.utils import cflow_head, positional_encoding_2d
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.decoder: nn.Module = cflow_head(CONDITION, BLOCKS, CLAMP, channels).to(device)
        self.positions = positional_encoding_2d(CONDITION, grid, grid).flatten(1).T.contiguous().to(device)

    def log_density(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens [N, C] at positions int64 [N] on the grid -> log p per dimension, float32 [N]."""
        from anomalib.models.image.cflow.utils import get_logp

        latent, log_det = self.decoder(tokens, [self.positions[positions]])
        return get_logp(tokens.shape[1], latent, log_det) / tokens.shape[1]

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, G, G] -> scores [B, G, G]; field and keys are not used."""
        tokens = x.flatten(2).transpose(1, 2).flatten(0, 1)
        positions = torch.arange(x.shape[2] * x.shape[3], device=x.device).repeat(len(x))
        return -self.log_density(tokens, positions).view(len(x), *x.shape[2:])


def fit_cflow(model: CFlow, batches: Iterable[Tensor], seed: int = 0) -> None:
    """Train on features [B, C, G, G] of normal images: one step of Adam per 64 positions, as anomalib does."""
    optimizer = torch.optim.Adam(model.decoder.parameters(), LEARNING_RATE)
    for step, x in enumerate(batches):
        tokens = x.flatten(2).transpose(1, 2).flatten(0, 1)
        order = torch.randperm(len(tokens), generator=keyed_generator(torch.device("cpu"), seed, step)).to(x.device)
        for chosen in order.split(FIBERS):
            loss = -functional.logsigmoid(model.log_density(tokens[chosen], chosen % len(model.positions))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.decoder.requires_grad_(False)
