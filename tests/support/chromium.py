"""Pages in a real browser: headless Chromium, driven through the DevTools protocol over a pipe, without a library.

Needs the Debian package chromium. By hand, to look at a page:
    python tests/support/chromium.py report.html shot.png --width 390 --dark
"""

import argparse
import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = "chromium"
ANSWER_SECONDS = 60  # a busy machine needs its time to start a browser
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-first-run",
    "--disable-background-networking",
)
HIGH = 100  # file descriptors from here on are free; the browser reads 3 and writes 4


def is_missing() -> bool:
    return shutil.which(PROGRAM) is None


class Chromium:
    """A running browser with a profile of its own; `close` ends it."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="fmad-chromium-", ignore_cleanup_errors=True)
        to_browser, self._out = _high_pipe()
        self._in, from_browser = _high_pipe()
        ends = (to_browser, from_browser)
        command = f'exec {PROGRAM} "$@" 3<&{to_browser} 4>&{from_browser}'
        arguments = [*OPTIONS, f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, *arguments],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._profile.name},
            start_new_session=True,
        )
        for end in ends:
            os.close(end)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False) -> "Page":
        """Load a local file or a URL in a new tab whose window has this size in CSS pixels; phones are at most 500."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        opened = Page(self, session, width)
        for domain in ("Page", "Runtime", "Log"):
            opened.call(f"{domain}.enable")
        phone = width <= 500
        opened.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        opened.call("Emulation.setEmulatedMedia", features=[scheme])
        opened.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        opened.wait("Page.loadEventFired")
        return opened

    def close(self) -> None:
        """End the browser and remove its profile."""
        if self._process.poll() is None:
            self._send({"id": next(self._numbers), "method": "Browser.close"})
            try:
                self._process.wait(ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; raises RuntimeError with the browser's own words."""
        number = next(self._numbers)
        to = {"sessionId": session} if session else {}
        self._send({"id": number, "method": method, "params": parameters, **to})
        while True:
            message = self._receive()
            if message.get("id") == number:
                break
            self._events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def events(self, session: str, until: str | None = None) -> list[dict[str, Any]]:
        """What happened in a tab and was not asked for yet; waits for the event `until` if one is named."""
        while until and not any(_is(event, session, until) for event in self._events):
            self._events.append(self._receive())
        own = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return own

    def _send(self, message: dict[str, Any]) -> None:
        os.write(self._out, json.dumps(message).encode() + b"\0")

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                state = self._process.poll()
                raise RuntimeError("the browser does not answer" if state is None else f"the browser ended ({state})")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab of a browser. `errors` are what the console would show in red or yellow, refused loads among them."""

    def __init__(self, browser: Chromium, session: str, width: int) -> None:
        self.browser = browser
        self.session = session
        self.width = width
        self.errors: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        result = self.browser.call(method, self.session, **parameters)
        self._note()
        return result

    def wait(self, event: str) -> None:
        self._note(event)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON carries it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key by its name and its Windows key code, as Tab and 9."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def tables(self, selector: str) -> list[list[list[str]]]:
        """The text of the tables that a CSS selector finds: table, row, cell."""
        rows = "[...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(table => {rows})")

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window, which a phone would shrink or scroll."""
        root = "document.documentElement"
        return self.evaluate(f"{root}.scrollWidth - Math.min({root}.clientWidth, {self.width})")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _note(self, until: str | None = None) -> None:
        for event in self.browser.events(self.session, until):
            told = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                self.errors.append(told["exceptionDetails"]["text"])
            elif event["method"] == "Log.entryAdded" and told["entry"]["level"] in ("warning", "error"):
                self.errors.append(told["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] in ("warning", "error", "assert"):
                self.errors.append(json.dumps(told["args"]))


def _high_pipe() -> tuple[int, int]:
    """Read and write end of a pipe, out of the way of the numbers that the browser wants."""
    low = os.pipe()
    reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, HIGH) for end in low)
    for end in low:
        os.close(end)
    return reader, writer


def _is(event: dict[str, Any], session: str, method: str) -> bool:
    return event.get("sessionId") == session and event.get("method") == method


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a local page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--window", action="store_true", help="only what the window shows")
    arguments = parser.parse_args()
    if is_missing():
        sys.exit("not installed: chromium (Debian: chromium)")
    browser = Chromium()
    page = browser.open(arguments.page, arguments.width, arguments.height, arguments.dark)
    page.screenshot(arguments.png, whole=not arguments.window)
    print(f"errors: {page.errors}, overflow: {page.overflow()} px")
    browser.close()


if __name__ == "__main__":
    main()
