"""The report in a real browser: no errors, no overflow, and the numbers of results.json."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fmad_dist.jobs.speed import ProcessSpeed, speed_of
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import METRIC_NAMES
from fmad_dist.report.benchmark import ComparedRow, published_rows
from fmad_dist.report.html import write_report
from fmad_dist.report.result_files import write_results
from tests.support.chromium import Chromium, Page
from tests.support.toy_states import single_defects, three_classes

SMALL, PHONE, DESK = 320, 390, 1400
SPEED = speed_of(
    [ProcessSpeed(36, dict.fromkeys(("read", "features", "score", "metrics", "save"), 1.0), 1 << 30, 0)],
    1.0,
    torch.device("cpu"),
)
LONG = "a_name_without_any_space_" * 8  # names and notes come from users
PEER = ComparedRow(LONG, "peer", LONG, {"image_auroc": 0.5, "aupro": 0.25})

# of every bar of every chart: where the bar ends and its whisker starts and ends, as shares of the track
BAR_ENDS = """[...document.querySelectorAll('.bars')].map(chart => [...chart.querySelectorAll('.track')].map(track => {
    const box = track.getBoundingClientRect();
    const place = x => (x - box.left) / box.width;
    const whisker = track.querySelector('.whisker')?.getBoundingClientRect();
    const end = place(track.querySelector('.bar').getBoundingClientRect().right);
    return [end, whisker && place(whisker.left), whisker && place(whisker.right)];
}))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, and one with single defects, beside their results."""
    folder = tmp_path_factory.mktemp("report")
    peers = {"mvtec_ad": [PEER]}
    facts = {"Model": "models:/fmad/3", "Code": LONG}
    for name, state in (("classes", three_classes("mvtec_ad")), ("defects", single_defects())):
        results = compute_results(state)
        write_results(results, folder / name)
        out = folder / name / "report.html"
        write_report(results, state, out, title=LONG, facts=facts, peers=peers, configuration=LONG, speed=SPEED)
    return folder


@pytest.fixture(scope="module")
def page(chromium: Chromium, folder: Path) -> Page:
    return chromium.open(folder / "classes" / "report.html", DESK)


def body(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "results.json").read_text())


def shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def parts(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Means and classes in the order of the tables."""
    found = [("Mean over classes", results["mean"])]
    for dataset, mean in results["datasets"].items():
        found.append((dataset, mean))
        found += [(name.split("/")[1], one) for name, one in results["classes"].items() if name.startswith(dataset)]
    return found


@pytest.mark.parametrize("width", [SMALL, PHONE, DESK])
@pytest.mark.parametrize("name", ["classes", "defects"])
def test_pages_open_without_errors_and_fit(chromium: Chromium, folder: Path, name: str, width: int) -> None:
    page = chromium.open(folder / name / "report.html", width)
    assert page.evaluate("innerWidth") == width
    assert page.errors == []
    assert page.overflow() <= 0
    assert page.evaluate("[...document.images, ...document.querySelectorAll('image')].length") > 0


def test_links_lead_to_every_class_and_are_large_enough_to_touch(chromium: Chromium, folder: Path) -> None:
    page = chromium.open(folder / "classes" / "report.html", PHONE)
    page.evaluate("document.querySelector('nav details').open = true")
    links = "[...document.querySelectorAll('%s a[href^=\"#class-\"]')].map(a => a.getAttribute('href').slice(1))"
    classes = page.evaluate("[...document.querySelectorAll('article')].map(article => article.id)")
    assert len(classes) == 3
    for place in (".jump", "#summary .scroll:first-of-type", '[aria-label="Areas of every class"]'):
        assert sorted(page.evaluate(links % place)) == sorted(classes)
    sizes = page.evaluate(
        "[...document.querySelectorAll('nav a, nav summary, table a')].map(e => e.getBoundingClientRect())"
        ".map(box => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 24


@pytest.mark.parametrize("dark", [False, True])
def test_a_table_that_is_cut_has_a_shadow_until_it_is_scrolled_to_its_end(
    chromium: Chromium, folder: Path, dark: bool, tmp_path: Path
) -> None:
    page = chromium.open(folder / "classes" / "report.html", PHONE, dark=dark)
    place = page.evaluate(
        "(box => [box.right, box.top])(document.querySelector('#summary .scroll').getBoundingClientRect())"
    )
    edge = []
    for scrolled in (0, 10000):
        page.evaluate(f"document.querySelector('#summary .scroll').scrollLeft = {scrolled}")
        page.screenshot(tmp_path / "page.png")
        shot = Image.open(tmp_path / "page.png").convert("L")
        edge.append(shot.getpixel((int(place[0]) - 4, int(place[1]) + 6)))
    assert edge[0] < edge[1] - 5


def test_numbers_are_those_of_the_results(page: Page, folder: Path) -> None:
    results = body(folder, "classes")
    summary, areas = page.tables("#summary table.metrics")
    assert [[row[0], *(cell.rstrip("*") for cell in row[2:])] for row in summary[2:]] == [
        [name, *(shown(values[metric]) for metric in METRIC_NAMES)] for name, values in parts(results)
    ]
    names = list(results["mean"]["areas"])
    assert areas[1:] == [
        [name, *(shown(values["areas"].get(area)) for area in names)] for name, values in parts(results)
    ]
    counts = {row[0]: row[1] for row in summary[2:]}
    assert counts["disc"] == "6 + 6"
    assert counts["Mean over classes"] == str(results["mean"]["num_images"])


def test_bars_are_as_long_as_their_numbers(page: Page, folder: Path) -> None:
    results = body(folder, "classes")
    charts = page.tables("table.bars")
    ends = page.evaluate(BAR_ENDS)
    for metric, rows, lengths in zip(("image_auroc", "pixel_auroc", "aupro"), charts, ends, strict=True):
        start = float(rows[0][1].split()[0]) / 100
        for (name, values), row, (length, low, high) in zip(parts(results), rows[1:], lengths, strict=True):
            pair = values["intervals"].get(metric) if "intervals" in values else None
            text = [shown(values[metric]), *([f"{shown(pair[0])} to {shown(pair[1])}"] if pair else [])]
            assert (row[0], row[2].split("\n")) == (name, text)
            value = start if values[metric] is None else values[metric]
            assert length == pytest.approx((value - start) / (1 - start), abs=0.01)
            for end, place in zip(pair or (), (low, high), strict=pair is not None):
                assert place == pytest.approx((end - start) / (1 - start), abs=0.01)


def test_types_of_defects_are_those_of_the_results(chromium: Chromium, folder: Path) -> None:
    page = chromium.open(folder / "defects" / "report.html", DESK)
    ((head, *rows),) = page.tables("article table.metrics")
    (result,) = body(folder, "defects")["classes"].values()
    areas = [title.removeprefix("AU-sPRO ") for title in head if title.startswith("AU-sPRO")]
    assert rows == [
        [
            name,
            str(defect["num_anomalous"]),
            *(shown(defect[metric]) for metric in METRIC_NAMES),
            *(shown(defect["areas"][f"au_spro@{limit}"]) for limit in areas),
        ]
        for name, defect in result["defects"].items()
    ]


def test_published_rows_stand_below_ours_and_the_peers(page: Page, folder: Path) -> None:
    ((head, *rows),) = page.tables("table.compared")
    own = body(folder, "classes")["datasets"]["mvtec_ad"]
    columns = ["image_auroc", "pixel_auroc", "aupro", *(n for n in METRIC_NAMES if n.endswith(("ap", "f1max")))]
    assert len(head) == 1 + len(columns)
    assert rows[0] == ["fmad, this evaluation1", *(shown(own[name]) for name in columns)]
    assert [row[0] for row in rows[1:4]] == ["peers, measured alike", f"{LONG}2", "published"]
    for row, known in zip(rows[4:], published_rows("mvtec_ad"), strict=True):
        assert row[0].rstrip("0123456789") == known.name
        assert row[1:] == [shown(known.metrics.get(name)) for name in columns]
    text = page.evaluate("document.querySelector('#benchmarks').innerText")
    assert "choose the best epoch on the test set" in text


def test_the_page_follows_the_theme_and_the_keyboard(chromium: Chromium, folder: Path, page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = chromium.open(folder / "classes" / "report.html", PHONE, dark=True)
    light_sum, dark_sum = (sum(map(int, one.evaluate(f"{colour}.match(/\\d+/g)")[:3])) for one in (page, dark))
    assert dark_sum < 150 < 600 < light_sum
    reached = set()
    for _ in range(60):
        dark.press("Tab", 9)
        reached.add(dark.evaluate("document.activeElement.getAttribute('href') || document.activeElement.className"))
        if "#protocol" in reached and "scroll" in reached:
            break
    assert {"#summary", "#protocol", "scroll"} <= reached
    assert dark.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
