"""One optimizer step: the learning rate of its samples, micro batches through DeepSpeed, then the averaged weights.

The rate is a pure function of samples seen, so that it does not depend on batch layout or world size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fmad_dist.config.run import ModelConfig, TrainConfig
from fmad_dist.features.prepare import PreparedFeatures
from fmad_dist.flow.noise import keyed_times
from fmad_dist.flow.objective import FlowMatching
from fmad_dist.stream.batches import Batch
from fmad_dist.training.deepspeed_types import ZeroOptimizer
from fmad_dist.training.engine import Engine
from fmad_dist.training.place import Place
from fmad_dist.training.weights import ShardedEma

LABEL_DROP_STREAM = 2**32  # offset of the seed that decides which labels are dropped


def learning_rate(config: TrainConfig, place: Place) -> float:
    """Return the rate of the step after `place`: linear warm-up over `warmup_samples`, then `decay`."""
    samples = place.position + config.global_batch
    total = place.position + (config.steps - place.step) * config.global_batch
    if samples <= config.warmup_samples:
        return config.lr * samples / config.warmup_samples
    if config.decay == "step":
        return config.lr * config.decay_factor ** int(samples / total / config.decay_every - 1e-9)
    progress = (samples - config.warmup_samples) / max(1, total - config.warmup_samples)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class NonFiniteGuard:
    """Counts skipped steps: after `limit` in a row training returns to a checkpoint, at most `max_rollbacks` times."""

    limit: int
    max_rollbacks: int
    skipped: int = 0
    rollbacks: int = 0
    in_a_row: int = 0

    def note(self, optimizer: ZeroOptimizer) -> bool:
        """Count the step that just ended; True if it was skipped, on all ranks alike, because the norm is the same."""
        skipped = bool(optimizer.overflow)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.skipped += skipped
        return skipped

    @property
    def must_go_back(self) -> bool:
        return self.in_a_row >= self.limit

    def went_back(self) -> None:
        self.rollbacks += 1
        self.in_a_row = 0

    @property
    def may_go_back(self) -> bool:
        return self.rollbacks < self.max_rollbacks


@dataclass(frozen=True)
class StepRunner:
    """What does an optimizer step, and holds what it needs."""

    engine: Engine
    ema: ShardedEma
    features: PreparedFeatures
    objective: FlowMatching
    model: ModelConfig
    guard: NonFiniteGuard

    def run(self, micro_batches: list[Batch], lr: float) -> Tensor:
        """Do one optimizer step and return the detached mean loss of this rank's part, float32 []."""
        self.engine.set_lr(lr)
        total = torch.zeros((), device=self.engine.device)
        for batch in micro_batches:
            loss = self._loss(batch)
            self.engine.deepspeed.backward(loss)
            self.engine.deepspeed.step()
            total += loss.detach()
        if not self.guard.note(self.engine.optimizer):
            self.ema.update()
        return total / len(micro_batches)

    def _loss(self, batch: Batch) -> Tensor:
        data = batch.data.to(self.engine.device, non_blocking=True)
        x = self.features.whitening(data if self.features.cached else self.features.backbone(data))
        labels = self._labels(batch) if self.model.use_labels else None
        return self.objective.loss(self.engine.deepspeed, x, batch.positions.tolist(), labels, self.engine.dtype)

    def _labels(self, batch: Batch) -> Tensor:
        """Return class numbers, a share of them replaced by "unknown", keyed by (seed, position) as noise and times."""
        unknown = self.engine.network.spec.num_classes
        draws = keyed_times(self.objective.seed + LABEL_DROP_STREAM, batch.positions.tolist())
        labels = torch.where(draws < self.model.label_drop, torch.tensor(unknown), batch.labels)
        return labels.to(self.engine.device)
