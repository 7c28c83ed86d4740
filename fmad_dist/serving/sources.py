"""Where a served detector's images come from: inside the request, or at URLs that its operator allows."""

import base64
import binascii
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from fmad_dist.errors import UserError, first_line

URLS_VARIABLE = "FMAD_SERVE_URLS"
MAX_BYTES = 256 << 20  # of an encoded image
SCHEMES = ("http", "https", "s3")
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Images as base64, and URLs below the `allowed` ones. A server would otherwise read for anybody whatever it can
    reach itself: other hosts of its network, its own disk, buckets of its role."""

    allowed: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Sources":
        """From URLs separated by commas.

        Raises:
            UserError: one of them is no http, https or s3 URL.
        """
        allowed = tuple(part.strip() for part in text.split(",") if part.strip())
        for url in allowed:
            parts = urlsplit(url)
            if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
                raise UserError(
                    f"{URLS_VARIABLE}: {url!r} does not look like https://host/folder/ or s3://bucket/folder/."
                )
        return cls(allowed)

    def read(self, image: object, where: str) -> bytes:
        """The bytes of the image file that a request means by `image`.

        Raises:
            UserError: it is no base64, a URL that is not allowed or cannot be read, or too large.
        """
        if not isinstance(image, str) or not image:
            raise UserError(f"{where}: no image; send the bytes of an image file as base64.")
        text = image.strip()
        if text.startswith("data:"):
            text = text.partition(",")[2]
        elif "://" in text[:16]:
            return self._fetched(text, where)
        if len(text) > MAX_BYTES * 4 // 3:
            raise _too_long(where)
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: not base64; send the bytes of an image file as base64.") from None

    def _fetched(self, url: str, where: str) -> bytes:
        parts = urlsplit(url)
        if not any(_is_below(parts, urlsplit(place)) for place in self.allowed):
            raise UserError(f"{where}: this server reads no URLs but those below the ones in its {URLS_VARIABLE}.")
        return _from_s3(url) if parts.scheme == "s3" else _from_http(url, where)


def _is_below(parts: SplitResult, place: SplitResult) -> bool:
    if (parts.scheme, parts.netloc) != (place.scheme, place.netloc):
        return False
    path = unquote(parts.path)
    if "\\" in path or "%" in path or ".." in path.split("/"):
        return False
    folder = place.path.rstrip("/") + "/"
    return path.startswith(folder)


def _from_s3(url: str) -> bytes:
    from fmad_dist.storage import Store

    folder, _, name = url.rpartition("/")
    store = Store(folder, _PATIENCE_S)
    if store.size(name) > MAX_BYTES:
        raise _too_long(url)
    return store.read(name)


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a place that is not allowed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _from_http(url: str, where: str) -> bytes:
    try:
        with urllib.request.build_opener(_Stay()).open(url, timeout=_PATIENCE_S) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {url} cannot be read ({first_line(error)}).") from None
    if len(data) > MAX_BYTES:
        raise _too_long(where)
    return bytes(data)


def _too_long(where: str) -> UserError:
    return UserError(f"{where}: an image file of more than {MAX_BYTES >> 20} MB; send a smaller one.")
