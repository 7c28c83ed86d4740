"""The body of a request is bounded before it has memory."""

import asyncio
from typing import Any

import pytest

from fmad_dist.serving.server import BodyLimit


async def reached(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize(
    ("method", "length", "status"),
    [("POST", "100", 200), ("POST", "101", 413), ("POST", None, 411), ("POST", "-1", 411), ("GET", None, 200)],
)
def test_what_is_too_large_is_refused(method: str, length: str | None, status: int) -> None:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    headers = [] if length is None else [(b"content-length", length.encode())]
    asyncio.run(BodyLimit(reached, 100)({"type": "http", "method": method, "headers": headers}, None, send))
    assert said[0]["status"] == status
    assert (b"send fewer images" in said[1]["body"]) == (status == 413)
