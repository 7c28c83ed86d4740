"""Averaged weights kept in fp32 on each rank's own ZeRO partition: no gather per step, any ZeRO stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ShardedEma:
    """Exponential moving average of the optimizer's fp32 partitions.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by its start.
    """

    def __init__(self, optimizer: Any, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = fp32_partitions(optimizer)
        self.average = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def take_weights(self) -> None:
        """Make the average equal to the current weights (used while a checkpoint is loaded)."""
        for average, weight in zip(self.average, self.weights, strict=True):
            average.copy_(weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the fp32 partitions hold the average; the weights come back afterwards.

        DeepSpeed's per-parameter accessors are views of these partitions, so inside the block they read the average.
        """
        with torch.no_grad():
            kept = [weight.detach().clone() for weight in self.weights]
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)
            try:
                yield
            finally:
                for weight, old in zip(self.weights, kept, strict=True):
                    weight.copy_(old)


def fp32_partitions(optimizer: Any) -> list[Tensor]:
    """This rank's flat fp32 master weights under ZeRO-1/2 or ZeRO-3."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)
