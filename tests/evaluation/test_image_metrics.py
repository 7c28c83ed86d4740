"""Image metrics against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fmad_dist.evaluation.curves import average_precision, best_f1, rank_scores, roc_curve


def ours(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    ranked = rank_scores(scores, labels)
    return [roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0]]


def reference(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return [roc_auc_score(labels, scores), average_precision_score(labels, scores), float(f1.max())]


@settings(max_examples=80, deadline=None)
@given(
    items=st.lists(st.tuples(st.one_of(st.integers(-3, 3), st.floats(-1e30, 1e30)), st.integers(0, 1)), max_size=60),
    exponent=st.sampled_from([-200, 0, 200]),
)
def test_matches_scikit_learn(items: list[tuple[float, int]], exponent: int) -> None:
    scores = np.array([0.0, 0.0, *(score for score, _ in items)]) * 10.0**exponent
    labels = np.array([0, 1, *(label for _, label in items)])
    np.testing.assert_allclose(ours(scores, labels), reference(scores, labels), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], [3 / 4, (1 + 2 / 3) / 2, 4 / 5]),
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1], [1 / 2, 1 / 2, 2 / 3]),
        ([2.0, 1.0], [0, 1], [0, 1 / 2, 2 / 3]),
    ],
)
def test_worked_examples(scores: list[float], labels: list[int], expected: list[float]) -> None:
    np.testing.assert_allclose(ours(np.array(scores), np.array(labels)), expected, atol=1e-15)
