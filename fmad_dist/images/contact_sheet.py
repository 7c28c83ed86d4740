"""Rows of small pictures with captions, and masks outlined: what people look at before they trust a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

TILE = 192  # pixels per side of one image on the sheet
_CAPTION = 16
_GAP = 4
_OUTLINE = (255, 32, 32)
_BACKGROUND = (24, 24, 28)
_TEXT = (230, 230, 230)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture uint8 (H, W, 3), the line below it and, if it has one, its mask bool (H, W)."""

    pixels: np.ndarray
    caption: str
    mask: np.ndarray | None = None


def draw_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """RGB; every picture is squeezed to `TILE` x `TILE`."""
    step_x, step_y = TILE + _GAP, TILE + _CAPTION + _GAP
    width = max(len(row) for row in rows) * step_x + _GAP
    sheet = Image.new("RGB", (width, len(rows) * step_y + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        for column, tile in enumerate(row):
            left, top = _GAP + column * step_x, _GAP + line * step_y
            sheet.paste(_picture(tile), (left, top))
            draw.text((left + 2, top + TILE + 2), tile.caption, fill=_TEXT)
    return sheet


def outline(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels just outside a bool mask (H, W), so that the defect itself stays visible."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((3, 3), bool), iterations=2) & ~binary_dilation(mask)


def _picture(tile: Tile) -> Image.Image:
    image = Image.fromarray(tile.pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)
    if tile.mask is None:
        return image
    mask = Image.fromarray(tile.mask.astype(np.uint8)).resize((TILE, TILE), Image.Resampling.NEAREST)
    pixels = np.array(image)
    pixels[outline(np.asarray(mask) > 0)] = _OUTLINE
    return Image.fromarray(pixels)
