"""A GPU that is not there: its tensors have shapes and no data, and whoever mixes them with those of the CPU fails.

So code is checked for tensors in the wrong place on machines without one. What comes back from it has no data either,
which code that decides by values cannot use.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)


class AbsentGPU(FakeTensorMode):
    """While entered, `cuda` can be used; what is on the CPU alone is computed as always."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(map(_is_elsewhere, tree_leaves((args, kwargs)))):
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(self._without_data, (args, kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _without_data(self, value: object) -> object:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        return self.from_tensor(value)

    def __deepcopy__(self, memo: object) -> "AbsentGPU":
        """Copies of a tensor are on the same GPU."""
        return self


def _is_elsewhere(value: object) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == GPU.type)


@pytest.fixture
def absent_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, usable in this test alone. Keyed noise has no generator there, as torch makes none without data."""
    monkeypatch.setattr("fmad_dist.flow.noise._generators", lambda device, seed, keys, *more: [None] * len(keys))
    with AbsentGPU():
        yield GPU
