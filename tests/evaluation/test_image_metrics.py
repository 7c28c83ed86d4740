"""Image metrics against scikit-learn."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fmad_dist.detector import Detections
from fmad_dist.evaluation import evaluator
from fmad_dist.evaluation.curves import average_precision, best_f1, rank_scores, roc_curve
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.stream.dataset import Sample
from fmad_dist.stream.mixture import Mixture

MakeScored = Callable[..., ScoredImage]


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


def areas_of(images: list[ScoredImage]) -> dict[str, float]:
    """Of one class, scored by two ranks."""
    ranks = [EvaluationState(Protocol(map_size=8)) for _ in range(2)]
    for number, image in enumerate(images):
        ranks[number % 2].update(image)
    ranks[0].merge(EvaluationState.from_bytes(ranks[1].to_bytes()))
    return ranks[0].compute().classes["toy/disc"].areas


def test_a_part_is_as_anomalous_as_its_most_anomalous_view(make_scored: MakeScored) -> None:
    """Parts a and b are normal with highest views 0.4 and 0.7, c and d defective with 0.6 and 0.9 and views of any
    label: of the four pairs one (c, b) is in the wrong order."""
    views = [("a", 0, 0.4), ("a", 0, 0.1), ("b", 0, 0.7), ("b", 0, 0.2), ("b", 0, 0.3)]
    views += [("c", 1, 0.5), ("c", 0, 0.6), ("d", 0, 0.0), ("d", 1, 0.9)]
    images = [
        make_scored(f"{part}{number}", label, number, image_score=score, group=part)
        for number, (part, label, score) in enumerate(views)
    ]
    assert areas_of(images)["sample_auroc"] == 3 / 4
    alone = make_scored("e", 1, 9, image_score=0.8)  # a part of its own, and so is another without a group
    assert areas_of([*images, alone])["sample_auroc"] == pytest.approx(5 / 6)
    assert areas_of([*images, alone, replace(alone, sample_id="f", image_score=0.65)])["sample_auroc"] == 6 / 8


def test_without_views_or_without_both_kinds_of_parts_there_is_no_sample_auroc(make_scored: MakeScored) -> None:
    single = [make_scored(f"{n}", n % 2, n, group=f"part {n}") for n in range(6)]
    assert "sample_auroc" not in areas_of(single)
    assert "sample_auroc" not in areas_of([replace(image, group="") for image in single])
    assert "sample_auroc" not in areas_of([replace(image, group=f"part {n // 2}") for n, image in enumerate(single)])


def test_the_evaluator_hands_on_which_part_an_image_shows() -> None:
    sample = Sample("real_iad/usb/a", "real_iad", "usb", "test", 0, "good", "s", None, (), 8, 8, group="usb_0001_OK")
    dataset = SimpleNamespace(sample=lambda place: sample)
    mixture = cast(Mixture, SimpleNamespace(locate=lambda row: (dataset, 0)))
    batch = evaluator.TestBatch(
        (5,), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (np.zeros((8, 8), dtype=bool),), (None,)
    )
    found = Detections(torch.zeros(1), torch.zeros(1, 8, 8), *torch.zeros(4, 1))
    (image,) = evaluator.scored_images(mixture, batch, found)
    assert (image.sample_id, image.group) == ("real_iad/usb/a", "usb_0001_OK")
