"""The few images of a class that a report shows: the extremes by score, then by id."""

from fmad_dist.metrics.panels import HIGHEST, LOWEST, PANELS_PER_KIND, PanelBoard
from fmad_dist.metrics.state import ScoredImage
from tests.support.scored_images import MakeScored, state_of


def test_panels_are_the_extremes_by_score_then_id(images: list[ScoredImage]) -> None:
    board = state_of(images).classes["toy/disc"].board
    ours = [image for image in images if image.class_name == "toy/disc"]
    for label in (0, 1):
        highest, lowest = board.extremes(label, HIGHEST), board.extremes(label, LOWEST)
        scores = sorted(image.image_score for image in ours if image.label == label)
        assert [panel.row.score for panel in lowest] == scores[:PANELS_PER_KIND]
        assert [panel.row.score for panel in highest] == scores[: -PANELS_PER_KIND - 1 : -1]
    assert len(board.panels) <= 4 * PANELS_PER_KIND


def test_panels_of_equal_scores_are_chosen_by_id(make_scored: MakeScored) -> None:
    tied = [make_scored(f"n{i}", 0, i, image_score=1.0) for i in range(10)]
    board: PanelBoard = state_of(tied[::-1]).classes["toy/disc"].board
    assert list(board.panels) == ["n0", "n1", "n2"]
