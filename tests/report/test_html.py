"""The report: one offline page that says what the results say."""

import re
from dataclasses import astuple, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import decode_state, encode_state
from fmad_dist.report.html import PAGES, class_sections, write_report
from fmad_dist.report.tables import anchors
from tests.support.scored_images import MakeScored, state_of
from tests.support.toy_states import SIZE, scored, single_defects, three_classes


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
    path = write_report(compute_results(state), state, tmp_path / "deep/report.html", title="Toy & co", facts=facts)
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


def test_a_large_report_has_a_page_for_every_class(
    state: EvaluationState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages hold what the single page does, refer to nothing outside, and go when they are not needed any more."""
    whole = page_of(state, tmp_path)
    monkeypatch.setattr("fmad_dist.report.html.PAGE_BYTES", len(whole) // 10)
    index, folder = page_of(state, tmp_path), tmp_path / "deep" / PAGES
    pages = sorted(folder.iterdir())
    assert len(pages) == len(state.classes)
    assert "<article" not in index
    checker = Checker()
    checker.feed(index)
    assert checker.open == []
    links = {reference for reference in checker.references if reference.startswith(PAGES)}
    assert links == {f"{PAGES}/{page.name}" for page in pages}
    assert all(reference in links or reference.removeprefix("#") in checker.ids for reference in checker.references)
    for page in pages:
        checker = Checker()
        checker.feed(page.read_text())
        assert checker.open == []
        assert all(one.startswith("data:image/") or one.removeprefix("#") in checker.ids
                   for one in checker.references if one != "../report.html")  # fmt: skip
        article = re.sub(r"i1-", "i0-", page.read_text().partition("<article")[2].partition("</article>")[0])
        assert article in re.sub(r"i\d-", "i0-", whole)
    monkeypatch.undo()
    assert page_of(state, tmp_path) == whole
    assert not folder.exists()


def test_classes_of_like_names_have_pages_of_their_own() -> None:
    found = anchors(["a/b c", "a/b-c", "a/B_c", "a/d"])
    assert list(found.values()) == ["class-a-b-c", "class-a-b-c-2", "class-a-B-c-3", "class-a-d"]


def test_text_from_outside_is_escaped(state: EvaluationState, tmp_path: Path) -> None:
    page = page_of(state, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;dent&lt;/b&gt;" in page
    assert "<title>Toy &amp; co</title>" in page


def test_page_shows_every_class_metric_and_reason(state: EvaluationState, tmp_path: Path) -> None:
    page, results = page_of(state, tmp_path), compute_results(state)
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
    page, result = page_of(state, tmp_path), compute_results(state).classes["loco/box"]
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


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_pictures_follow_scores_that_are_made_of_the_whole_test_set(num_ranks: int, make_scored: MakeScored) -> None:
    """Ranges and sums that disagree: the images of the report are those of the sorted final scores, for any ranks."""
    protocol = Protocol(name="flowad", map_size=8)
    rng = np.random.default_rng(5)
    maps = rng.normal(rng.normal(size=(60, 1, 1)), rng.random((60, 1, 1)), (60, 8, 8)).astype(np.float32)
    images = [make_scored(f"toy/disc/{i:02d}", i % 2, i, anomaly_map=one) for i, one in enumerate(maps)]
    images = [replace(image, image_score=float(np.ptp(image.anomaly_map))) for image in images]
    merged = EvaluationState(protocol)
    for rank in range(num_ranks):
        merged.merge(decode_state(encode_state(state_of(images[rank::num_ranks][::-1], protocol))))
    assert encode_state(merged) == encode_state(state_of(images, protocol))
    (section,) = (one for one in class_sections(compute_results(merged), merged) if one.name == "toy/disc")
    shown = [[(t.panel.row.sample_id, t.panel.row.score) for t in tiles] for tiles in section.gallery.groups.values()]
    parts = [np.array([np.ptp(one) for one in maps]), np.array([one.sum(dtype=float) for one in maps])]
    scores = sum((part - part.min()) / (part.max() - part.min()) for part in parts)
    for label, (highest, lowest) in ((1, shown[:2]), (0, shown[2:])):
        order = sorted(range(label, 60, 2), key=lambda i: scores[i])
        for found, expected in ((lowest, order[:3]), (highest, order[:-4:-1])):
            assert [name for name, _ in found] == [images[i].sample_id for i in expected]
            assert [score for _, score in found] == pytest.approx(scores[expected], rel=1e-5)
    by_range = np.argsort(parts[0][1::2])[::-1][:3] * 2 + 1
    assert [name for name, _ in shown[0]] != [images[i].sample_id for i in by_range]  # or this would test nothing
    assert len(merged.classes["toy/disc"].board.panels) < 50
