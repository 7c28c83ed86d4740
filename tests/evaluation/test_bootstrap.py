"""Bootstrap intervals: against scikit-learn on the same draws, and their coverage."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fmad_dist.evaluation import bootstrap
from fmad_dist.evaluation.bootstrap import draw_metrics, intervals, mean_draws
from fmad_dist.evaluation.results import ScoreRow


def rows_of(scores: np.ndarray, labels: np.ndarray, class_name: str = "toy/disc") -> list[ScoreRow]:
    pairs = zip(scores.tolist(), labels.tolist(), strict=True)
    return [ScoreRow(f"{i:04d}", class_name, label, "good", score) for i, (score, label) in enumerate(pairs)]


def test_every_draw_is_what_scikit_learn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator's counts are repeated here, and repeated images handed to scikit-learn; scores have ties."""
    monkeypatch.setattr(bootstrap, "DRAWS", 20)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [13, 9])
    scores = np.round(rng.normal(size=22) + labels, 1)
    drawn: list[np.ndarray] = []

    class Recorder:
        def __init__(self, seed: int) -> None:
            self.rng = np.random.Generator(np.random.PCG64(seed))

        def multinomial(self, n: int, shares: np.ndarray, size: int) -> np.ndarray:
            drawn.append(self.rng.multinomial(n, shares, size=size))
            return drawn[-1]

    monkeypatch.setattr(np.random, "default_rng", Recorder)
    found = draw_metrics(rows_of(scores, labels))
    order = np.lexsort((np.arange(22), -scores))
    for draw in range(20):
        repeats = np.zeros(22, dtype=int)
        for label in (0, 1):
            repeats[order[labels[order] == label]] = drawn[label][draw]
        image = np.repeat(np.arange(22), repeats)
        assert found["image_auroc"][draw] == pytest.approx(roc_auc_score(labels[image], scores[image]))
        assert found["image_ap"][draw] == pytest.approx(average_precision_score(labels[image], scores[image]))


def test_intervals_do_not_depend_on_the_order_and_hold_the_true_value_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    labels, held = np.repeat([0, 1], 40), 0
    for trial in range(100):
        rows = rows_of(rng.normal(size=80) + labels, labels, f"toy/{trial}")
        low, high = intervals(draw_metrics(rows))["image_auroc"]
        assert intervals(draw_metrics(rows[::-1]))["image_auroc"] == (low, high)
        held += low <= 0.7602 <= high  # Phi(1 / sqrt 2)
    assert 88 <= held <= 99


def test_a_mean_over_classes_is_narrower_and_leaves_undefined_ones_out() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 20)
    classes = [draw_metrics(rows_of(rng.normal(size=40) + labels, labels, f"toy/{i}")) for i in range(9)]
    assert draw_metrics(rows_of(np.zeros(3), np.zeros(3, dtype=int))) == {}
    widths = [high - low for low, high in (intervals(one)["image_auroc"] for one in classes)]
    low, high = intervals(mean_draws([*classes, {}]))["image_auroc"]
    assert high - low < 0.5 * np.mean(widths)
    assert intervals(mean_draws([{}])) == {}
