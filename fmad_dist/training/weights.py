"""Named, full-size fp32 tensors out of ZeRO partitions and back. All ranks call every function here.

Parameters are gathered one by one, so the peak is one full parameter, not a second model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fmad_dist.training.ema import ShardedEma
from fmad_dist.training.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")

ReadTensor = Callable[[str, str], Tensor]  # kind and parameter -> float32 CPU tensor


def everything(position: int) -> bool:
    return True


def full_weights(engine: Engine, wanted: Callable[[int], bool] = everything) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 CPU tensor) of the parameters at the `wanted` positions."""
    from deepspeed.utils import safe_get_full_fp32_param

    for position, (name, parameter) in enumerate(engine.network.named_parameters()):
        found = safe_get_full_fp32_param(parameter)
        if wanted(position):
            yield name, _on_cpu(found)


def full_moments(engine: Engine, kind: str, wanted: Callable[[int], bool] = everything) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 CPU tensor) of one of AdamW's `MOMENTS` for the parameters at the `wanted` positions."""
    from deepspeed.utils import safe_get_full_optimizer_state

    for position, (name, parameter) in enumerate(engine.network.named_parameters()):
        found = safe_get_full_optimizer_state(parameter, kind)
        if wanted(position):
            yield name, _on_cpu(found)


def averaged_weights(engine: Engine, ema: ShardedEma) -> dict[str, Tensor]:
    """The consolidated averaged network on the CPU, on every rank."""
    with ema.swapped_in():
        return dict(full_weights(engine))


def restore(engine: Engine, ema: ShardedEma, read: ReadTensor, ema_updates: int, step: int) -> None:
    """Load what a checkpoint holds, one tensor at a time; kinds are "weight", "ema" and `MOMENTS`.

    The order matters: an empty optimizer step creates the moments and copies the masters into the working weights, so
    the masters are set before it and the moments after it.
    """
    _set_weights(engine, "ema", read)
    ema.take_weights()
    ema.updates = ema_updates
    _set_weights(engine, "weight", read)
    _empty_step(engine)
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for name, parameter in engine.network.named_parameters():
        for kind in MOMENTS:
            value = read(kind, name).to(engine.device)
            if is_partitioned(parameter):
                safe_set_local_optimizer_state(parameter, own_part(parameter, value), kind)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)
    for state in engine.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(step))


def _set_weights(engine: Engine, kind: str, read: ReadTensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for name, parameter in engine.network.named_parameters():
        value = read(kind, name).to(engine.device)
        if is_partitioned(parameter):
            safe_set_local_fp32_param(parameter, own_part(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 has split this parameter over the ranks."""
    return hasattr(parameter, "ds_id")


def own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a full tensor; DeepSpeed pads the last one, but its own setter does not."""
    size = parameter.partition_numel()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    part = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - len(part)))


def _empty_step(engine: Engine) -> None:
    spec: Any = engine.network.spec
    shape = (1, spec.channels, spec.grid, spec.grid)
    engine.set_lr(0.0)
    for _ in range(engine.deepspeed.gradient_accumulation_steps()):
        x = torch.zeros(shape, device=engine.device, dtype=engine.dtype)
        velocity = engine.deepspeed(x, torch.zeros(1, device=engine.device))
        engine.deepspeed.backward(velocity.float().sum() * 0.0)
        engine.deepspeed.step()


def _on_cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "every parameter has full state after the first optimizer step"
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
