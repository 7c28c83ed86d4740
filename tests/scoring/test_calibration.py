import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.scoring.calibration import decision_thresholds, fit_thresholds, nearest_class, normalise

SCORES = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60)
LIMITS = st.tuples(st.floats(-50.0, 50.0, width=32), st.floats(2.0**-7, 16.0, width=32))  # a threshold and its margin


def threshold(scores: list[float], rate: float) -> float:
    return fit_thresholds(np.array(scores), np.zeros(len(scores), int), 1, rate).thresholds[0]


def test_false_alarms_by_hand() -> None:
    """1000 scores: at 1 % the 990th of 0..999 is the limit, and a normal bound far below it does not lower it."""
    scores = [*np.linspace(0, 1, 980), *np.linspace(50, 60, 20)]
    limit = threshold(scores, 0.01)
    assert sum(score > limit for score in scores) <= 10
    assert limit >= np.sort(scores)[989]


def test_the_normal_bound_by_hand() -> None:
    """Mean 2, standard deviation 1, n = 3: t(0.9, 2 degrees) = 1.8856, times sqrt(4 / 3)."""
    assert threshold([1.0, 2.0, 3.0], 0.1) == pytest.approx(2.0 + 1.8856 * math.sqrt(4 / 3), abs=1e-3)


def test_few_normal_images_still_keep_the_rate() -> None:
    """The bound is exact for normal scores: over many draws of 8 images a ninth one is above it in 5 %."""
    draws = np.random.default_rng(0).normal(10, 2, (4000, 9))
    alarms = [row[8] > threshold(row[:8].tolist(), 0.05) for row in draws]
    assert 0.03 < np.mean(alarms) < 0.06


@given(SCORES, st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_a_smaller_rate_never_lowers_the_threshold(scores: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert threshold(scores, low) >= threshold(scores, high) - 1e-9


@given(SCORES, st.floats(0.001, 0.499))
def test_held_out_images_keep_the_rate(scores: list[float], rate: float) -> None:
    limit = threshold(scores, rate)
    assert sum(score > limit for score in scores) <= rate * len(scores)


@given(SCORES, st.floats(0.001, 0.499), st.floats(0.1, 10), st.floats(-5, 5))
def test_thresholds_move_with_the_scale_of_the_scores(
    scores: list[float], rate: float, factor: float, shift: float
) -> None:
    moved = threshold([factor * score + shift for score in scores], rate)
    assert moved == pytest.approx(factor * threshold(scores, rate) + shift, rel=1e-6, abs=1e-6)


def test_one_image_is_its_own_limit() -> None:
    assert threshold([3.5], 0.01) == 3.5


def test_classes_are_kept_apart() -> None:
    scores, classes = np.array([1.0, 50.0, 1.0, 50.0, 7.0]), np.array([0, 1, 0, 1, 3])
    calibration = fit_thresholds(scores, classes, 4, 0.01)
    assert calibration.thresholds == (1.0, 50.0, math.inf, 7.0)
    assert calibration.num_images == (2, 2, 0, 1)
    assert calibration.false_alarm_rate == 0.01


def test_the_order_of_images_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    scores, classes, order = rng.random(50), rng.integers(0, 3, 50), rng.permutation(50)
    one = fit_thresholds(scores, classes, 3, 0.02).thresholds
    assert fit_thresholds(scores[order], classes[order], 3, 0.02).thresholds == pytest.approx(one, rel=1e-12)


def test_margins_reach_from_the_mean_to_the_threshold() -> None:
    """A class without a spread of its own has the median of the others; if no class has one, the threshold's size."""
    scores, classes = np.array([1.0, 2.0, 3.0, 5.0, 9.0, 4.0]), np.array([0, 0, 0, 1, 1, 2])
    found = fit_thresholds(scores, classes, 4, 0.1)
    assert found.margins[:2] == pytest.approx((found.thresholds[0] - 2.0, found.thresholds[1] - 7.0))
    assert found.margins[2:] == pytest.approx((np.median(found.margins[:2]),) * 2)
    assert found.global_threshold == threshold(scores.tolist(), 0.1)
    assert found.global_margin == pytest.approx(found.global_threshold - 4.0)
    assert fit_thresholds(np.array([-3.0]), np.array([0]), 1, 0.1).margins == (3.0,)
    assert fit_thresholds(np.zeros(5), np.zeros(5, int), 1, 0.1).margins == (1.0,)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 3)), min_size=1, max_size=60), st.floats(0.001, 0.499))
def test_the_threshold_for_all_classes_keeps_the_rate(found: list[tuple[float, int]], rate: float) -> None:
    scores, classes = np.array([score for score, _ in found]), np.array([number for _, number in found])
    calibration = fit_thresholds(scores, classes, 4, rate)
    assert (scores > calibration.global_threshold).sum() <= rate * len(scores)
    assert calibration.limits("global") == ((calibration.global_threshold,) * 4, (calibration.global_margin,) * 4)
    assert min(calibration.margins) > 0.0


def level(score: float, limits: tuple[float, float]) -> float:
    return normalise(torch.tensor(score), *map(torch.tensor, limits)).item()


def test_the_scale_by_hand() -> None:
    limits = 10.0, 4.0  # the mean held-out normal is at 6
    assert [level(score, limits) for score in (6.0, 10.0, 14.0, 22.0)] == [0.25, 0.5, 0.75, 0.875]
    assert level(math.inf, limits) == 1.0
    assert level(-math.inf, limits) == 0.0
    assert math.isnan(level(10.0, (math.inf, 1.0)))


@given(LIMITS, st.lists(st.floats(-1e6, 1e6, width=32), min_size=2))
def test_the_scale_is_monotone_and_half_at_the_threshold(limits: tuple[float, float], scores: list[float]) -> None:
    one, other = map(torch.tensor, limits)
    found = normalise(torch.tensor(sorted(scores)), one, other)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff() >= 0).all()
    assert normalise(one, one, other).item() == 0.5
    assert ((found > 0.5) == (torch.tensor(sorted(scores)) > one))[found != 0.5].all()


@given(LIMITS, st.floats(-100.0, 100.0, width=32), st.floats(0.01, 0.99))
def test_a_decision_is_a_level_of_the_scale(limits: tuple[float, float], score: float, sensitivity: float) -> None:
    limit = decision_thresholds(*map(torch.tensor, limits), sensitivity)
    assert level(limit.item(), limits) == pytest.approx(1.0 - sensitivity, abs=1e-3)
    if abs(level(score, limits) - (1.0 - sensitivity)) > 1e-3:  # else rounding decides
        assert (score > limit.item()) == (level(score, limits) > 1.0 - sensitivity)


@given(LIMITS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_sensitivity_never_raises_a_threshold(limits: tuple[float, float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    pair = tuple(map(torch.tensor, limits))
    assert decision_thresholds(*pair, high) <= decision_thresholds(*pair, low)


def test_the_ends_of_sensitivity() -> None:
    thresholds, margins = torch.tensor([1.0, math.inf]), torch.tensor([2.0, 1.0])
    assert decision_thresholds(thresholds, margins, 0.5) is thresholds
    assert decision_thresholds(thresholds, margins, 0.75).tolist() == [-1.0, math.inf]
    assert decision_thresholds(thresholds, margins, 0.25).tolist() == [3.0, math.inf]
    assert decision_thresholds(thresholds, margins, 0.0).tolist() == [math.inf, math.inf]
    assert decision_thresholds(thresholds, margins, 1.0).tolist() == [-math.inf, math.inf]
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="sensitivity"):
            decision_thresholds(thresholds, margins, wrong)


def test_the_nearest_class_by_hand() -> None:
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    pooled = torch.tensor([[1.0, 1.0], [6.0, 0.0], [4.0, 5.5], [0.0, 100.0], [5.0, 0.0]])
    assert nearest_class(pooled, means).tolist() == [0, 1, 2, 2, 0]
