"""The report's images."""

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.report.tiles import gallery, heat_range
from tests.support.toy_states import SIZE, scored, three_classes


def test_a_small_class_shows_each_image_once() -> None:
    board = EvaluationState(Protocol(map_size=SIZE))
    for i in range(4):
        board.update(scored(f"d{i}", "toy/few", 1, i))
    groups = gallery(board.classes["toy/few"].board).groups
    shown = [tile.panel.row.sample_id for tiles in groups.values() for tile in tiles]
    assert sorted(shown) == ["d0", "d1", "d2", "d3"]
    assert all(tile.outline.startswith("M") for tiles in groups.values() for tile in tiles)


def test_heat_runs_from_the_normal_background_to_a_defects_peak() -> None:
    panels = list(three_classes().classes["toy/disc"].board.panels.values())
    low, high = heat_range(panels)
    assert -0.2 < low < 0.2
    assert min(p.anomaly_map.max() for p in panels) < high <= max(p.anomaly_map.max() for p in panels)
