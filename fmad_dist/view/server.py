"""Serve the page and its pictures over HTTP, to this machine only.

It listens on 127.0.0.1 and answers only to that name and localhost, so that a web page that points a name of its own at
this address (DNS rebinding) gets nothing.
"""

import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fmad_dist.base.errors import UserError
from fmad_dist.view.pictures import SMALL_HEAT, Cache, Picture, as_shown, heat, thumbnail
from fmad_dist.view.results import ScoredImages, page_data

ADDRESS = "127.0.0.1"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(results: ScoredImages) -> Starlette:
    """Make the web application. Browsers may cache pictures, because their URLs are of this start of the page alone."""
    cache = Cache()
    page = {path.name: path.read_bytes() for path in files("fmad_dist.view").joinpath("page").iterdir()}
    data = json.dumps({"start": secrets.token_hex(4), **page_data(results)}, allow_nan=False).encode()
    columns = results.columns

    def file(request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in page:
            return _answer(b"not found", "text/plain", 404)
        return _answer(page[name], _TYPES[name.rpartition(".")[2]])

    def pictures(there: list[int], make: Callable[[int], Picture]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            row = request.path_params["row"]
            if row >= len(there) or not there[row]:
                return _answer(b"not found", "text/plain", 404)
            try:
                found = make(row)
            except UserError as error:
                return _answer(str(error).encode(), "text/plain", 404)
            return _answer(found.data, found.kind, cached=True)

        return answer

    def small(row: int) -> Picture:
        return cache.get(("image", row), lambda: thumbnail(results.picture(row), columns.names[row]))

    def small_heat(row: int) -> Picture:
        return cache.get(("heat", row), lambda: heat(results.heat(row), SMALL_HEAT))

    shown, hot = [int(one) for one in columns.pictures], [int(one) for one in columns.heats]
    routes = [
        Route("/", file),
        Route("/page/{name}", file),
        Route("/data.json", lambda request: _answer(data, "application/json")),
        Route("/thumbnail/{row:int}", pictures(shown, small)),
        Route("/thumbnail/{row:int}/heat", pictures(hot, small_heat)),
        Route("/image/{row:int}", pictures(shown, lambda row: as_shown(results.picture(row), columns.names[row]))),
        Route("/image/{row:int}/heat", pictures(hot, lambda row: heat(results.heat(row)))),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def _answer(data: bytes, kind: str, status: int = 200, cached: bool = False) -> Response:
    headers = _HEADERS | {"Cache-Control": "private, max-age=86400" if cached else "no-store"}
    return Response(data, status, headers, kind)


def serve(results: ScoredImages, port: int, announce: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C; `announce` is given the URL once it is open. Port 0 is a free one.

    Raises:
        UserError: the port is taken.
    """
    import uvicorn

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(
                f"--port {port}: cannot be used ({error.strerror}); give another, or 0 for a free one."
            ) from None
        listening.listen()
        announce(f"http://{ADDRESS}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(make_app(results), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
