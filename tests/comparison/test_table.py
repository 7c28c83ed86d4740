"""The comparison's table: scorers, peers and what is published."""

import io
import itertools
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from fmad_dist.base.world import World
from fmad_dist.comparison.choice import PEER_MARK
from fmad_dist.comparison.compared import Cost, Row
from fmad_dist.comparison.table import _facts, _label_speeds, _markdown
from fmad_dist.detector.detector import Detector
from fmad_dist.metrics.compute import compute_results
from tests.support.toy_states import three_classes


def test_known_benchmarks_are_shown_beside_published_rows() -> None:
    results = compute_results(three_classes("mvtec_ad"))
    rows = [Row("inversion", 3, 10.0, 1 << 20, results), Row(f"cflow {PEER_MARK}", 1, 20.0, 1 << 20, results)]
    text = _markdown(rows, {"ddim": "needs path vp"}, {"Protocol": "p"})
    table = text[text.index("## mvtec_ad: MVTec AD") :]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert names[:4] == ["Method", "**inversion (1)**", "cflow (peer) (1)", "FlowAD density (2)"]
    assert "so not its mean" in table
    assert "## other" not in text


@pytest.mark.parametrize("speeds", [[33.0], [33.0, 33.5], [21.0, 34.0, 90.0], [3.0, 290.0], [0.8, 900.0], [14.0, 2e5]])
def test_speeds_are_labelled_with_plain_numbers_that_do_not_overlap(speeds: list[float]) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axis, other = figure.subplots(1, 2)
    axis.scatter(speeds, speeds)
    axis.set(xscale="log")
    _label_speeds(axis, speeds)
    figure.legend(*other.get_legend_handles_labels(), loc="outside right center")
    figure.savefig(io.BytesIO(), format="png", dpi=130)
    low, high = axis.get_xlim()
    shown = [tick for tick in axis.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts = [tick.label1.get_text() for tick in shown]
    assert len(texts) >= 2
    assert [float(text.replace(",", "")) for text in texts] == pytest.approx([tick.get_loc() for tick in shown])
    boxes = [tick.label1.get_window_extent() for tick in shown]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    assert not any(tick.label1.get_text() for tick in axis.xaxis.get_minor_ticks())


@pytest.mark.parametrize(("size", "said"), [(1, "1 process, "), (2, "2 processes, ")])
def test_the_machine_is_told_in_words(size: int, said: str, make_detector: Callable[..., Detector]) -> None:
    facts = _facts(make_detector((1.0,)).spec, [Cost(1.0, 10)] * size, World(size=size))
    assert facts["Machine"].startswith(said)
    assert facts["Features"].endswith("10.0 images/s per process")


def test_it_is_told_when_speeds_are_of_several_starts(make_detector: Callable[..., Detector]) -> None:
    spec, costs = make_detector((1.0,)).spec, [Cost(1.0, 10), Cost(), Cost(1.0, 30)]
    assert "Speed" not in _facts(spec, costs, World(size=3))
    facts = _facts(spec, costs, World(size=2))
    assert facts["Speed"] == "mean over the 3 processes of all starts; it went on after a kill"
    assert facts["Features"].endswith("20.0 images/s per process")


def test_other_datasets_are_not_compared_with_published_rows() -> None:
    text = _markdown([Row("inversion", 3, 10.0, 1 << 20, compute_results(three_classes()))], {}, {})
    assert "Dinomaly" not in text
