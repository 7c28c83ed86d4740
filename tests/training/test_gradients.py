"""The one measurement of a step's gradient, that a single process reduces nothing, and whose methods are replaced."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.base.deepspeed import import_deepspeed
from fmad_dist.base.errors import UserError
from fmad_dist.training.gradients import (
    BUCKET_ELEMENTS,
    INVALID,
    KNOWN,
    FlatGradient,
    bucket_elements,
    gradient_norm,
    skip_needless_passes,
)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.sampled_from([torch.bfloat16, torch.float32]))
def test_it_is_the_norm_of_all_gradients_as_one_vector(sizes: list[int], dtype: torch.dtype) -> None:
    gradients = [torch.randn(size).to(dtype) for size in sizes]
    expected = torch.cat(gradients).double().norm()
    found = gradient_norm(gradients)
    assert (found.dtype, found.shape) == (torch.float32, ())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen(value: float) -> None:
    gradients = [torch.randn(5), torch.randn(2, 3)]
    gradients[1][1, 2] = value
    assert gradient_norm(gradients) == INVALID


def test_nothing_is_reduced_by_one_process_of_zero_1_and_2() -> None:
    assert [bucket_elements(10**9, stage, 1) for stage in (1, 2, 3)] == [1, 1, BUCKET_ELEMENTS]
    assert [bucket_elements(10**9, stage, 2) for stage in (1, 2, 3)] == [BUCKET_ELEMENTS] * 3
    assert bucket_elements(1000, 2, 8) == 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_vector_of_all_gradients_in_memory_that_stays(dtype: torch.dtype) -> None:
    flat = FlatGradient()
    places = set()
    for alignment in (8, 1, 5):
        gradients = [torch.randn(2, 3).to(dtype), torch.randn(1).to(dtype)]
        found = flat(gradients, alignment)
        padding = torch.zeros(-7 % alignment)
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.cat([*(one.float().flatten() for one in gradients), padding]))
        places.add(found.data_ptr())
    assert len(places) <= 2, "10 elements need more than 8, nothing else does"
    found.zero_()
    assert torch.equal(flat([torch.ones(3), torch.ones(4)], 1), torch.ones(7)), "what was left in it is gone"


@pytest.mark.parametrize(("stage", "processes"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)])
def test_methods_of_the_real_optimizers_are_known_and_replaced(
    stage: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import_deepspeed()
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    cls = DeepSpeedZeroOptimizer_Stage3 if stage == 3 else DeepSpeedZeroOptimizer
    optimizer = cls.__new__(cls)
    optimizer.dp_process_group = None
    skip_needless_passes(optimizer, stage, processes, torch.device("cpu"))
    replaced = set(KNOWN) if stage < 3 and processes == 1 else {"get_grad_norm_direct", "check_overflow"}
    assert vars(optimizer).keys() - {"dp_process_group"} == replaced
    assert optimizer.get_grad_norm_direct([torch.tensor([3.0, 4.0])], None) == 5
    assert optimizer.check_overflow() is None


class Optimizer:
    """What is replaced of DeepSpeed's optimizer, of one version that we know."""

    def get_grad_norm_direct(self, gradients: object, params: object, norm_type: int = 2) -> None: ...
    def check_overflow(self, partition_gradients: bool = True) -> None: ...
    def average_tensor(self, tensor: torch.Tensor, communication_data_type: torch.dtype) -> None: ...
    def copy_grads_in_partition(self, param: object) -> None: ...
    def flatten_dense_tensors_aligned(
        self, tensor_list: object, alignment: int, use_cpu_data: bool = False
    ) -> None: ...


def test_an_optimizer_of_another_version_is_named_in_one_sentence() -> None:
    class WithoutDtype(Optimizer):
        def average_tensor(self, tensor: torch.Tensor) -> None: ...  # DeepSpeed 0.17.1

    cpu = torch.device("cpu")
    skip_needless_passes(Optimizer(), 2, 1, cpu)
    skip_needless_passes(WithoutDtype(), 2, 2, cpu)  # not needed there
    found = r"DeepSpeed \d.*WithoutDtype.average_tensor takes \(tensor\) instead of .* known to work with 0\.19\.0 to"
    with pytest.raises(UserError, match=found):
        skip_needless_passes(WithoutDtype(), 2, 1, cpu)
    with pytest.raises(UserError, match=r"DeepSpeed \d.*SimpleNamespace has no get_grad_norm_direct; .*install one"):
        skip_needless_passes(SimpleNamespace(), 3, 2, cpu)
