"""Faster replacements for parts of DeepSpeed's gradient handling, which cost a tenth of a step (benchmarks/training).

DeepSpeed checks every gradient on its own, first for values that are not finite, then for its norm: on a DiT-L two
thousand small kernels per step, issued while the GPU has nothing to do. And a single process, which has nobody to share
with, copies each gradient into a bucket, divides it by one, reduces it and copies it back.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fmad_dist.base.deepspeed import replace_method
from fmad_dist.training.deepspeed_types import ZeroOptimizer

BUCKET_ELEMENTS = 25_000_000  # gradients reduced at a time
INVALID = -1.0  # what DeepSpeed takes for a norm that is not finite: it leaves the step out on all ranks
KNOWN = {  # the parameters of the methods that are replaced, in the versions of DeepSpeed that were tried
    "get_grad_norm_direct": ("gradients, params, norm_type=2",),
    "check_overflow": ("partition_gradients=True",),
    "average_tensor": ("tensor, communication_data_type",),
    "copy_grads_in_partition": ("param", "param, group_idx=None"),
    "flatten_dense_tensors_aligned": (
        "tensor_list, alignment, use_cpu_data=False",
        "tensor_list, alignment, use_cpu_data=False, param_padding=None",
    ),
}


def bucket_elements(num_parameters: int, zero_stage: int, processes: int) -> int:
    """Elements of the bucket that DeepSpeed reduces gradients in.

    DeepSpeed allocates all of it, however small the network is; its default is 500 million elements. A gradient that is
    larger than the bucket stays where it is, so ZeRO-1 and 2 need no bucket where nothing is reduced.
    """
    if zero_stage < 3 and processes == 1:
        return 1
    return min(BUCKET_ELEMENTS, num_parameters)


def skip_needless_passes(optimizer: ZeroOptimizer, zero_stage: int, processes: int, device: torch.device) -> None:
    """Replace the methods of a ZeRO optimizer that pass over gradients needlessly.

    Without a bucket, see `bucket_elements`, a single process has nothing to average and nothing to copy back.

    Raises:
        UserError: this DeepSpeed has other methods than those we know.
    """

    def norm(gradients: Sequence[Tensor], params: object, norm_type: float = 2) -> Tensor:
        assert norm_type == 2
        return gradient_norm(gradients, optimizer.dp_process_group)

    replacements: dict[str, Callable[..., object]] = {
        "get_grad_norm_direct": norm,
        "check_overflow": lambda partition_gradients=True: None,  # the norm tells
    }
    if zero_stage < 3 and processes == 1:
        replacements["average_tensor"] = lambda tensor, dtype: None
        replacements["copy_grads_in_partition"] = lambda param, group=None: None
        if device.type == "cpu":
            replacements["flatten_dense_tensors_aligned"] = FlatGradient()
    for name, replacement in replacements.items():
        replace_method(optimizer, name, KNOWN[name], replacement)


class FlatGradient:
    """Concatenates all gradients into one float32 vector, in memory that stays.

    A GPU's allocator keeps its memory; a CPU's gives a vector of this size (520 MB for a DiT-B) back to the system, and
    waits for zeroed pages in every step.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def __call__(self, gradients: Sequence[Tensor], alignment: int) -> Tensor:
        """The gradients one after the other, zero-padded to a multiple of `alignment`; valid until the next call."""
        count = sum(one.numel() for one in gradients)
        size = -(-count // alignment) * alignment
        if len(self._buffer) < size:
            self._buffer = torch.empty(size)
        torch.cat([one.detach().reshape(-1) for one in gradients], out=self._buffer[:count])
        self._buffer[count:size] = 0
        return self._buffer[:size]


def gradient_norm(gradients: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> Tensor:
    """L2 norm over all ranks, float32 []; INVALID if a value is not finite. Every rank calls."""
    norms = torch._foreach_norm([one.detach() for one in gradients], 2, dtype=torch.float32)
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square, group=group)
    norm = square.sqrt()
    return torch.where(norm.isfinite(), norm, torch.full_like(norm, INVALID))
