"""The one measurement of a step's gradient, and that a single process reduces nothing."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.training.gradients import BUCKET_ELEMENTS, INVALID, bucket_elements, gradient_norm


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
