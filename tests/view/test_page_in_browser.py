"""The page in a real browser, served by the command itself, over ten thousand images."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chromium import Chromium, Page

PHONE, DESK = 390, 1400
WAIT_S = 20

TILES = """[...document.querySelectorAll('.tile')].map(tile => ({
    name: tile.querySelector('.name').textContent.slice(1), verdict: tile.querySelector('.verdict').textContent,
    x: tile.getBoundingClientRect().x, y: tile.getBoundingClientRect().y,
})).sort((a, b) => a.y - b.y || a.x - b.x)"""

BOX = "(one => (b => [b.left, b.top, b.right, b.bottom])(one.getBoundingClientRect()))"


@pytest.fixture(scope="module")
def address(many: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "fmad_dist.cli", "view", str(many)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[0]
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=WAIT_S)
        assert (server.returncode, said) == (0, "")


@pytest.fixture(scope="module")
def page(chromium: Chromium, address: str) -> Page:
    opened = chromium.open(address, DESK)
    until(opened, "document.body.dataset.ready")
    return opened


def until(page: Page, expression: str) -> None:
    end = time.monotonic() + WAIT_S
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.05)


def choose(page: Page, name: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = '{value}';"
        " for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )


def counts(page: Page) -> dict[str, int]:
    parts = page.evaluate(
        "[...document.querySelectorAll('#counts span')].map(s => [s.className, s.querySelector('b').textContent])"
    )
    return {name: int(number.replace(",", "")) for name, number in parts}


def shown(page: Page) -> list[str]:
    return [tile["name"] for tile in page.evaluate(TILES)]


def test_only_what_is_seen_has_elements_and_pictures(page: Page) -> None:
    until(page, "document.querySelectorAll('.tile img.heat').length > 0")
    assert 8 <= page.evaluate("document.querySelectorAll('.tile').length") < 150
    assert page.evaluate("document.documentElement.scrollHeight") > 100_000
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    until(page, "[...document.querySelectorAll('.tile')].some(t => t.textContent.includes('unreadable'))")
    page.evaluate("scrollTo(0, 0)")
    until(page, "document.querySelector('.tile.anomalous .heat')?.naturalWidth > 0")


def test_sorting_and_filters(page: Page, many: Path) -> None:
    choose(page, "order", "highest")
    tiles = page.evaluate(TILES)
    number = counts(page)
    assert sum(number.values()) == 10_000
    assert number["unreadable"] == 1
    verdicts = [tile["verdict"] for tile in tiles]
    assert verdicts == ["anomalous"] * number["anomalous"] + ["normal"] * (len(tiles) - number["anomalous"])
    choose(page, "order", "name")
    names = shown(page)
    assert names == sorted(names)
    choose(page, "order", "lowest")
    assert all(name.startswith("line-3/") for name in shown(page))
    choose(page, "decision", "unreadable")
    assert shown(page) == ["cut.png"]
    choose(page, "decision", "anomalous")
    assert len(shown(page)) == number["anomalous"]
    choose(page, "class", "1")
    choose(page, "decision", "")
    of_class = counts(page)
    assert 4000 < sum(of_class.values()) < 6000
    choose(page, "class", "")
    choose(page, "order", "highest")


def test_the_slider_decides_at_once(page: Page) -> None:
    before = counts(page)
    choose(page, "threshold", "300")
    lower = counts(page)
    assert lower["anomalous"] > before["anomalous"] + 3000
    assert sum(lower.values()) == 10_000
    assert page.evaluate("document.getElementById('threshold-value').textContent") == "0.3"
    assert page.evaluate("[...document.querySelectorAll('.tile')].every(t => t.classList.contains('anomalous'))")
    choose(page, "threshold", "1000")
    assert counts(page)["anomalous"] == 0
    page.evaluate("document.getElementById('reset').click()")
    assert counts(page) == before
    assert page.evaluate("document.getElementById('threshold').value") == "500"


def test_the_overlay_fades(page: Page) -> None:
    opacity = "getComputedStyle(document.querySelector('.tile .heat')).opacity"
    until(page, "!!document.querySelector('.tile .heat')")  # comes after its picture
    choose(page, "opacity", "20")
    assert page.evaluate(opacity) == "0.2"
    choose(page, "opacity", "70")
    assert page.evaluate(opacity) == "0.7"


def test_the_keyboard_is_enough(page: Page) -> None:
    first, second, third = shown(page)[:3]
    name = "document.getElementById('large-name').textContent"
    for _ in range(20):
        page.press("Tab", 9)
        if page.evaluate("document.activeElement.classList.contains('tile')"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("document.activeElement.title") == first
    page.press("ArrowRight", 39)
    assert page.evaluate("document.activeElement.title") == second
    page.evaluate("document.activeElement.click()")  # what Enter does to a button
    until(page, "document.getElementById('large-image').naturalWidth > 0")
    assert page.evaluate(name) == second
    page.press("ArrowRight", 39)
    assert page.evaluate(name) == third
    page.press("ArrowLeft", 37)
    page.press("ArrowLeft", 37)
    assert page.evaluate(name) == first
    assert page.evaluate("document.getElementById('previous').disabled")
    until(page, "document.getElementById('large-heat').naturalWidth > 0")
    image, heat = (page.evaluate(f"{BOX}(document.getElementById('large-{kind}'))") for kind in ("image", "heat"))
    assert heat == pytest.approx(image, abs=0.5)
    page.press("Escape", 27)
    assert not page.evaluate("document.getElementById('large').open")
    until(page, f"document.activeElement.title == '{first}'")  # a dialog tells later that it was closed
    page.press("End", 35)
    assert page.evaluate("document.activeElement.title") == "cut.png"
    page.press("Home", 36)
    assert page.evaluate("document.activeElement.title") == first


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_themes(chromium: Chromium, address: str, dark: bool) -> None:
    phone = chromium.open(address, PHONE, dark=dark)
    until(phone, "document.querySelector('.tile img')?.naturalWidth > 0")
    assert phone.overflow() == 0
    phone.evaluate("document.querySelector('.tile').click()")
    until(phone, "document.getElementById('large-image').naturalWidth > 0")
    assert phone.overflow() == 0
    left, top, right, bottom = phone.evaluate(f"{BOX}(document.getElementById('large'))")
    assert 0 <= left < right <= PHONE
    assert 0 <= top < bottom <= 900
    background = phone.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background[:3]) < 150) == dark
    assert phone.errors == []


def test_nothing_was_in_the_console(page: Page) -> None:
    assert page.overflow() == 0
    assert page.errors == []
