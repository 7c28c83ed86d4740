"""Read the images of a request: base64 inside it, or files at URLs that the server's operator allows."""

import base64
import binascii
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.images.codec import max_pixels

URLS_VARIABLE = "FMAD_SERVE_URLS"
MAX_BYTES = 64 << 20  # of an encoded image
MAX_PIXELS = 2**25  # of an image in a request, 34 megapixels; FMAD_MAX_PIXELS replaces it
MAX_ROWS = 1000  # images of a request
SCHEMES = ("http", "https", "s3")
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads base64, and files below the `allowed` URLs. Without that limit anybody could let the server read what only
    the server can reach: other hosts of its network, its own disk, buckets of its role."""

    allowed: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "ImageReader":
        """Make one of URLs separated by commas.

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
        """Return the encoded image that `image` holds or points to; errors begin with `where`.

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
        if not any(_is_below(parts, urlsplit(allowed)) for allowed in self.allowed):
            raise UserError(f"{where}: this server reads no URLs but those below the ones in its {URLS_VARIABLE}.")
        return _from_s3(url) if parts.scheme == "s3" else _from_http(url, where)


def max_request_pixels() -> int:
    """Pixels that an image of a request may have (UserError if FMAD_MAX_PIXELS is no number)."""
    return max_pixels() if "FMAD_MAX_PIXELS" in os.environ else MAX_PIXELS


def _is_below(parts: SplitResult, allowed: SplitResult) -> bool:
    if (parts.scheme, parts.netloc) != (allowed.scheme, allowed.netloc):
        return False
    path = unquote(parts.path)
    if any(sign in path for sign in "\\%;") or not {".", ".."}.isdisjoint(path.split("/")):
        return False  # servers differ in what they make of these: `..;/` is `../` to some
    return path.startswith(allowed.path.rstrip("/") + "/")


def _from_s3(url: str) -> bytes:
    from fmad_dist.storage import Store

    folder, _, name = url.rpartition("/")
    store = Store(folder, _PATIENCE_S)
    if store.size(name) > MAX_BYTES:
        raise _too_long(url)
    return store.read(name)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a URL that is not allowed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _from_http(url: str, where: str) -> bytes:
    try:
        with urllib.request.build_opener(_NoRedirects()).open(url, timeout=_PATIENCE_S) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(f"{where}: {url} cannot be read ({first_line(error)}).") from None
    if len(data) > MAX_BYTES:
        raise _too_long(where)
    return bytes(data)


def _too_long(where: str) -> UserError:
    return UserError(f"{where}: an image file of more than {MAX_BYTES >> 20} MB; send a smaller one.")
