"""The one measurement of a step's gradient, and that a single process reduces nothing."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.training.gradients import BUCKET_ELEMENTS, INVALID, FlatGradient, bucket_elements, gradient_norm


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
