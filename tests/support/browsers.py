"""A fixture with a real browser."""

import os
from collections.abc import Iterator

import pytest

from tests.support.chromium import Chromium, is_missing


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A running Chromium. Where continuous integration runs, its absence is an error."""
    if is_missing():
        reason = "no browser: chromium is not installed (Debian: chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    browser = Chromium()
    yield browser
    browser.close()
