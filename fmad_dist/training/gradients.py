"""What is left out of DeepSpeed's way with gradients, because it costs a tenth of a step (benchmarks/training).

It looks at every gradient on its own, first for values that are not finite, then for its norm: on a DiT-L two thousand
small kernels per step, issued while the GPU has nothing to do. And a single process, which has nobody to share
with, copies each gradient into a bucket, divides it by one, reduces it and copies it back.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 25_000_000  # gradients reduced at a time
INVALID = -1.0  # what DeepSpeed takes for a norm that is not finite: it leaves the step out on all ranks


def bucket_elements(num_parameters: int, zero_stage: int, processes: int) -> int:
    """DeepSpeed allocates the whole bucket, however small the network is; its default is 500 million elements. What is
    larger than the bucket stays where it is, so ZeRO-1 and 2 have none where nothing is reduced."""
    if zero_stage < 3 and processes == 1:
        return 1
    return min(BUCKET_ELEMENTS, num_parameters)


def skip_needless_passes(optimizer: Any, zero_stage: int, processes: int) -> None:
    """Of a ZeRO optimizer over gradients, as said above; it must have been made with `bucket_elements`."""

    def norm(gradients: Sequence[Tensor], params: Any, norm_type: float = 2) -> Tensor:
        assert norm_type == 2
        return gradient_norm(gradients, optimizer.dp_process_group)

    optimizer.get_grad_norm_direct = norm
    optimizer.check_overflow = lambda partition_gradients=True: None  # the norm tells
    if zero_stage < 3 and processes == 1:
        optimizer.average_tensor = lambda tensor, dtype: None
        optimizer.copy_grads_in_partition = lambda param, group=None: None  # out of the bucket
        if torch.device(optimizer.device).type == "cpu":
            optimizer.flatten_dense_tensors_aligned = FlatGradient()


class FlatGradient:
    """All gradients as one float32 vector, in memory that stays. A GPU's allocator keeps what it has; a CPU gives a
    vector of this size (520 MB for a DiT-B) back to the system, and waits for zeroed pages in every step."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def __call__(self, gradients: Sequence[Tensor], alignment: int) -> Tensor:
        """The gradients one after the other, filled up with zeros to a multiple of `alignment`; until the next call."""
        count = sum(one.numel() for one in gradients)
        size = -(-count // alignment) * alignment
        if len(self._buffer) < size:
            self._buffer = torch.empty(size)
        torch.cat([one.detach().reshape(-1) for one in gradients], out=self._buffer[:count])
        self._buffer[count:size] = 0
        return self._buffer[:size]


def gradient_norm(gradients: Sequence[Tensor], group: Any = None) -> Tensor:
    """L2 norm over all ranks, float32 []; INVALID if a value is not finite. Every rank calls."""
    norms = torch._foreach_norm([one.detach() for one in gradients], 2, dtype=torch.float32)
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square, group=group)
    norm = square.sqrt()
    return torch.where(norm.isfinite(), norm, torch.full_like(norm, INVALID))
