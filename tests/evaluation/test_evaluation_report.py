"""The report: one offline page that says what the results say."""

import re
from dataclasses import astuple
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from toy_states import SIZE, scored, single_defects, three_classes

from fmad_dist.evaluation.curves import Curve
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.report import charts
from fmad_dist.evaluation.report.html import write_report
from fmad_dist.evaluation.report.tiles import gallery, heat_range
from fmad_dist.evaluation.results import ScoreRow
from fmad_dist.evaluation.state import EvaluationState


@pytest.fixture
def state() -> EvaluationState:
    return three_classes()


class Checker(HTMLParser):
    """Collects what a page refers to and whether its tags are balanced."""

    VOID = frozenset({"meta", "link", "img", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._collect(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._collect(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _collect(self, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def page_of(state: EvaluationState, tmp_path: Path) -> str:
    facts = {"model": "<script>alert(1)</script>", "manifest": "s3://bucket/toy"}
    path = write_report(state.compute(), state, tmp_path / "deep/report.html", title="Toy & co", facts=facts)
    assert path == tmp_path / "deep/report.html"
    return path.read_text()


def test_page_is_one_balanced_file_that_refers_to_nothing_outside(state: EvaluationState, tmp_path: Path) -> None:
    page = page_of(state, tmp_path)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    for reference in checker.references:
        assert reference.startswith("data:image/") or reference.removeprefix("#") in checker.ids
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_text_from_outside_is_escaped(state: EvaluationState, tmp_path: Path) -> None:
    page = page_of(state, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;dent&lt;/b&gt;" in page
    assert "<title>Toy &amp; co</title>" in page


def test_page_shows_every_class_metric_and_reason(state: EvaluationState, tmp_path: Path) -> None:
    page, results = page_of(state, tmp_path), state.compute()
    for name, result in results.classes.items():
        assert f"<h3>{name}</h3>" in page
        if not result.undefined:
            assert f">{100 * result.metrics.aupro:.1f}<" in page
    assert f"<dd>{100 * results.mean.metrics.image_auroc:.1f}</dd>" in page
    assert "because the class has no anomalous images: image AUROC, image AP, image F1max." in page
    assert "left out: 1 undefined" in page
    assert "fmad-2026" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


@pytest.mark.parametrize(("native", "title"), [(True, "AU-sPRO"), (False, "AU-sPRO on the map")])
def test_page_shows_areas_and_types_of_defects(tmp_path: Path, native: bool, title: str) -> None:
    state = single_defects(native)
    page, result = page_of(state, tmp_path), state.compute().classes["loco/box"]
    for column in (f"{title} 0.05", "AUPRO 0.01", "image AUROC of types", "Type of defect"):
        assert f">{column}</th>" in page
    assert ("AU-sPRO was measured on the map" in page) is not native
    header = page[page.index(">Type of defect</th>") :]
    titles = re.findall(r'class="number">([^<]+)</th>', header[: header.index("</tr>")])
    metrics = [f"{kind} {metric}" for kind in ("image", "pixel") for metric in ("AUROC", "AP", "F1max")]
    limits = [f"{title} {limit}" for limit in ("0.01", "0.05", "0.1", "0.3", "1")]
    assert titles == ["Images", *metrics, "AUPRO", *limits]
    for name, defect in result.defects.items():
        row = page[page.index(f'<th scope="row">{name}</th>') :]
        numbers = re.findall(r">([\d.–]+)<", row[: row.index("</tr>")])
        areas = [defect.areas[area] for area in sorted(defect.areas) if "spro" in area]
        values = (*astuple(defect.metrics), *areas)
        assert numbers == [str(defect.num_anomalous), *(f"{100 * value:.1f}" for value in values)]
    assert f">{100 * result.areas['au_spro@0.05' if native else 'au_spro_map@0.05']:.1f}<" in page


def test_protocol_is_told_in_words(tmp_path: Path) -> None:
    """No None, False or () of Python, and what is said of pixel metrics holds for presets."""
    pages = {}
    for name in ("fmad-2026", "dinomaly", "flowad"):
        state = EvaluationState(Protocol(name=name, map_size=SIZE))
        for i in range(6):
            state.update(scored(f"toy/disc/test/{i}", "toy/disc", i % 2, i))
        pages[name] = re.sub(r"\s+", " ", page_of(state, tmp_path / name))
        table = dict(re.findall(r'<th scope="row">([a-z0-9 ]+)</th><td>([^<]*)</td>', pages[name]))
        assert table["blur sigma"] == ("4.0" if name == "dinomaly" else "0.0")
        assert table["more fpr limits"] == ("0.1, 0.05, 0.01" if name == "fmad-2026" else "none")
        assert table["align corners"] == ("yes" if name == "dinomaly" else "no")
        assert not {"None", "False", "True", "()"} & set(table.values())
    assert "estimated from them" not in pages["fmad-2026"]
    assert "Image metrics are exact. Pixel" in pages["fmad-2026"]
    assert "ranks; AUPRO is estimated from them at equally spaced thresholds." in pages["dinomaly"]
    assert "whose rates are stretched to end at 1." in pages["dinomaly"]
    assert "ranks; pixel AUROC, pixel F1max, AUPRO are estimated from them" in pages["flowad"]
    assert "exact for these scores, which depend on all test images" in pages["flowad"]
    assert '<b class="badge">Biased</b> estimates' in pages["flowad"]


def test_the_mean_of_a_single_dataset_stands_once(tmp_path: Path) -> None:
    page = page_of(single_defects(), tmp_path)
    assert page.count(">Mean over classes<") == 2  # summary and areas
    assert '<tr class="dataset">' not in page


def test_both_axes_of_every_chart_have_a_title(state: EvaluationState, tmp_path: Path) -> None:
    page = page_of(state, tmp_path)
    titles = re.findall(r'transform="rotate\(-90\)" text-anchor="middle">([^<]+)<', page)
    assert set(titles) == {"images", "true positive rate", "per-region overlap"}
    assert len(titles) == page.count('<figure class="chart">')


def test_a_small_class_shows_each_image_once(state: EvaluationState) -> None:
    board = EvaluationState(Protocol(map_size=SIZE))
    for i in range(4):
        board.update(scored(f"d{i}", "toy/few", 1, i))
    groups = gallery(board.classes["toy/few"].board).groups
    shown = [tile.panel.sample_id for group in groups for tile in group.tiles]
    assert sorted(shown) == ["d0", "d1", "d2", "d3"]
    assert all(tile.outline.startswith("M") for group in groups for tile in group.tiles)


def test_heat_runs_from_the_normal_background_to_a_defects_peak(state: EvaluationState) -> None:
    panels = list(state.classes["toy/disc"].board.panels.values())
    low, high = heat_range(panels)
    assert -0.2 < low < 0.2
    assert min(p.anomaly_map.max() for p in panels) < high <= max(p.anomaly_map.max() for p in panels)


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-5.0, 1.0, 2.0], [1e-3, 1.0, 1e6]])
def test_score_charts_stay_inside_their_frame(scores: list[float]) -> None:
    rows = [ScoreRow(str(i), "toy/a", i % 2, "good", score) for i, score in enumerate(scores)]
    chart = charts.score_chart(rows)
    assert ("logarithmic" in chart.x_name) == (max(scores) > 1e5)
    for line in chart.lines:
        numbers = np.array(re.findall(r"-?[\d.]+", line.path), dtype=float).reshape(-1, 2)
        assert numbers[:, 0].min() >= charts.LEFT
        assert numbers[:, 0].max() <= charts.RIGHT
        assert numbers[:, 1].min() >= charts.TOP
        assert numbers[:, 1].max() <= charts.BOTTOM
    assert chart.mark is not None
    assert charts.LEFT <= chart.mark <= charts.RIGHT


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    fpr = np.linspace(0, 1, 50_000)
    line = charts._line("pixel", "pixel", Curve(fpr, np.sqrt(fpr)), 1.0)
    points = line.path.removeprefix("M").split("L")
    assert len(points) <= charts.NUM_CURVE_POINTS
    assert points[0] == f"{charts.LEFT}.0,{charts.BOTTOM}.0"
    assert points[-1] == f"{charts.RIGHT}.0,{charts.TOP}.0"
