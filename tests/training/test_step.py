import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.config.run import TrainConfig
from fmad_dist.training.place import Place
from fmad_dist.training.step import learning_rate


def settings(steps: int = 100, global_batch: int = 10, warmup_samples: int = 200, lr: float = 0.5) -> TrainConfig:
    return TrainConfig(steps=steps, global_batch=global_batch, warmup_samples=warmup_samples, lr=lr)


def rate(config: TrainConfig, step: int) -> float:
    """Of a step of a run whose batch never changed."""
    return learning_rate(config, Place(step, step * config.global_batch))


def test_warm_up_is_linear_up_to_the_peak() -> None:
    config = settings()  # 200 samples are 20 steps
    assert [rate(config, step) for step in range(20)] == pytest.approx([0.5 * n / 20 for n in range(1, 21)])


def test_a_cosine_leads_to_zero() -> None:
    config = settings()
    assert rate(config, 19) == 0.5
    assert rate(config, 59) == pytest.approx(0.25)  # half way
    assert rate(config, 39) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(config, 99) == pytest.approx(0.0, abs=1e-12)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 5000))
def test_the_rate_rises_then_falls_and_stays_in_range(steps: int, global_batch: int, warmup: int) -> None:
    config = settings(steps, global_batch, warmup)
    rates = [rate(config, step) for step in range(steps)]
    assert all(0.0 <= rate <= 0.5 + 1e-12 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@given(st.integers(0, 49))
def test_the_rate_is_a_function_of_samples(step: int) -> None:
    """Twice the batch and half the steps meet the same rates at the same samples."""
    small, large = settings(steps=100, global_batch=10), settings(steps=50, global_batch=20)
    assert rate(large, step) == pytest.approx(rate(small, 2 * step + 1))


def test_no_warm_up_starts_at_the_top() -> None:
    assert rate(settings(steps=1000, warmup_samples=0), 0) == pytest.approx(0.5, rel=1e-4)


def test_a_warm_up_longer_than_training_never_reaches_the_peak() -> None:
    config = settings(steps=10, warmup_samples=200)
    assert rate(config, 9) == pytest.approx(0.25)


def test_another_batch_goes_on_at_the_samples_that_were_seen() -> None:
    """40 steps of 10, then 30 of 20: 1000 samples in all, at the rates of 100 steps of 10."""
    config, small = settings(steps=70, global_batch=20), settings(steps=100, global_batch=10)
    for done in range(30):
        found = learning_rate(config, Place(40 + done, 400 + 20 * done))
        assert found == pytest.approx(rate(small, 40 + 2 * done + 1))
