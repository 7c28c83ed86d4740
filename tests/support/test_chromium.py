"""The browser sees what is wrong with a page."""

from pathlib import Path

from tests.support.chromium import Chromium

HEAD = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
POLICY = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"


def test_mistakes_of_a_page_are_seen(chromium: Chromium, tmp_path: Path) -> None:
    wide = "<script>nothing.there()</script><body style='margin: 8px'><div style='width: 700px'>wide</div>"
    (tmp_path / "bad.html").write_text(HEAD + wide)
    page = chromium.open(tmp_path / "bad.html", 390)
    assert page.overflow() == 8 + 700 - 390
    assert "Uncaught" in page.errors[0]
    (tmp_path / "loads.html").write_text(f"{HEAD}{POLICY}<img src='other.png'>")
    assert "Content Security Policy" in chromium.open(tmp_path / "loads.html", 390).errors[0]


def test_a_good_page_is_read(chromium: Chromium, tmp_path: Path) -> None:
    cells = "<table id=t><tr><th>a<td>1.5<tr><th>b<td><b>2</b></table>"
    (tmp_path / "good.html").write_text(HEAD + cells)
    page = chromium.open(tmp_path / "good.html", 1400, dark=True)
    assert page.errors == []
    assert page.overflow() == 0
    assert page.tables("#t") == [[["a", "1.5"], ["b", "2"]]]
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    page.screenshot(tmp_path / "shot.png")
    assert (tmp_path / "shot.png").read_bytes()[:4] == b"\x89PNG"
