"""One optimizer step: accumulate micro batches through DeepSpeed, then average the weights."""

import torch
from torch import Tensor

from fmad_dist.config import ModelConfig
from fmad_dist.features.prepare import PreparedFeatures
from fmad_dist.flow.noise import keyed_times
from fmad_dist.flow.objective import FlowMatching
from fmad_dist.stream.batches import Batch
from fmad_dist.training.ema import ShardedEma
from fmad_dist.training.engine import Engine
from fmad_dist.training.guard import NonFiniteGuard

LABEL_DROP_STREAM = 2**32  # offset of the seed that decides which labels are dropped


class StepRunner:
    """Holds what a step needs, so that the loop reads as one."""

    def __init__(
        self,
        engine: Engine,
        ema: ShardedEma,
        features: PreparedFeatures,
        objective: FlowMatching,
        model: ModelConfig,
        guard: NonFiniteGuard,
    ) -> None:
        self.engine = engine
        self.ema = ema
        self.features = features
        self.objective = objective
        self.model = model
        self.guard = guard

    def run(self, micro_batches: list[Batch], lr: float) -> Tensor:
        """The detached mean loss of this rank's part of the step."""
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
        """Class numbers with a share replaced by "unknown", keyed by (seed, position) like noise and times."""
        unknown = self.engine.network.spec.num_classes  # type: ignore[union-attr]
        draws = keyed_times(self.objective.seed + LABEL_DROP_STREAM, batch.positions.tolist())
        labels = torch.where(draws < self.model.label_drop, torch.tensor(unknown), batch.labels)
        return labels.to(self.engine.device)
