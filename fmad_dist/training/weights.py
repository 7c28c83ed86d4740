"""The fp32 tensors that ZeRO keeps in partitions: their average over the steps, and reading and setting them by name.

The average is of each rank's own partition: no gather per step, any ZeRO stage. Named, full-size tensors are gathered
one by one, so the peak is one full parameter, not a second model; all ranks call every function that does it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fmad_dist.base.deepspeed import check_attributes
from fmad_dist.training.deepspeed_types import PartitionedParameter, ZeroOptimizer
from fmad_dist.training.engine import Engine

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")  # kinds of tensors: master weights, and AdamW's moments

ReadTensor = Callable[[str, str], Tensor]  # kind and parameter -> float32 CPU tensor


class ShardedEma:
    """Exponential moving average of the optimizer's fp32 partitions.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by its start.
    """

    def __init__(self, optimizer: ZeroOptimizer, decay: float) -> None:
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
        """Make the average equal to the current weights, while a checkpoint is loaded."""
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


def fp32_partitions(optimizer: ZeroOptimizer) -> list[Tensor]:
    """Return this rank's flat fp32 master weights under any ZeRO stage.

    Raises:
        UserError: this DeepSpeed keeps them elsewhere.
    """
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    check_attributes(optimizer, ["single_partition_of_fp32_groups"])
    return list(optimizer.single_partition_of_fp32_groups)


def full_tensors(
    engine: Engine, kind: str, wanted: Callable[[int], bool] = lambda position: True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, fp32 CPU tensor) of the parameters at the `wanted` positions; `kind` is WEIGHT or of MOMENTS."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for position, (name, parameter) in enumerate(engine.network.named_parameters()):
        if kind == WEIGHT:
            found = safe_get_full_fp32_param(parameter)
        else:
            found = safe_get_full_optimizer_state(parameter, kind)
        if wanted(position):
            assert found is not None, "every parameter has full state after the first optimizer step"
            yield name, found.detach().to("cpu", torch.float32, copy=True).contiguous()


def averaged_weights(engine: Engine, ema: ShardedEma) -> dict[str, Tensor]:
    """Return the averaged weights by parameter, on the CPU of every rank."""
    with ema.swapped_in():
        return dict(full_tensors(engine, WEIGHT))


def restore(engine: Engine, ema: ShardedEma, read: ReadTensor, ema_updates: int, step: int) -> None:
    """Load what a checkpoint holds, one tensor at a time: kinds "ema", WEIGHT and MOMENTS.

    The order matters: an empty optimizer step creates the moments and copies the masters into the working weights, so
    the masters are set before it and the moments after it.
    """
    _set_tensors(engine, WEIGHT, lambda kind, name: read("ema", name))
    ema.take_weights()
    ema.updates = ema_updates
    _set_tensors(engine, WEIGHT, read)
    _empty_step(engine)
    for kind in MOMENTS:
        _set_tensors(engine, kind, read)
    for state in engine.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(step))


def _set_tensors(engine: Engine, kind: str, read: ReadTensor) -> None:
    from deepspeed import utils

    key: tuple[str, ...] = () if kind == WEIGHT else (kind,)
    set_full = utils.safe_set_full_optimizer_state if key else utils.safe_set_full_fp32_param
    set_part = utils.safe_set_local_optimizer_state if key else utils.safe_set_local_fp32_param
    for name, parameter in engine.network.named_parameters():
        value = read(kind, name).to(engine.device)
        if isinstance(parameter, PartitionedParameter):
            set_part(parameter, own_part(parameter, value), *key)
        else:
            set_full(parameter, value, *key)


def own_part(parameter: PartitionedParameter, value: Tensor) -> Tensor:
    """Return this rank's part of a full tensor, flat. DeepSpeed pads the last rank's part, but its setter does not."""
    size = parameter.partition_numel()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    part = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - len(part)))


def _empty_step(engine: Engine) -> None:
    spec = engine.network.spec
    shape = (1, spec.channels, spec.grid, spec.grid)
    engine.set_lr(0.0)
    for _ in range(engine.deepspeed.gradient_accumulation_steps()):
        x = torch.zeros(shape, device=engine.device, dtype=engine.dtype)
        velocity = engine.deepspeed(x, torch.zeros(1, device=engine.device))
        engine.deepspeed.backward(velocity.float().sum() * 0.0)
        engine.deepspeed.step()
