"""Images as a client sends them, good ones and odd ones."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def sent(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb() -> bytes:
    """A few bytes that claim 400 megapixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 60001)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def odd_images() -> dict[str, tuple[object, str]]:
    """What is sent, and a part of what is answered."""
    frames = [picture(1), picture(2)]
    return {
        "truncated": (sent(encoded(picture(3), "JPEG")[:-200]), "cannot be decoded"),
        "bomb": (sent(bomb()), "more than 134 megapixels"),
        "animated": (sent(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), "is animated"),
        "text": (sent(b"hello"), "cannot be decoded"),
        "garbage": ("no base64 !", "not base64"),
        "nothing": ("", "no image"),
        "missing": (None, "no image"),
        "file": ("file:///etc/hostname", "reads no URLs"),
        "other host": ("http://127.0.0.1:1/a.png", "reads no URLs"),
    }
