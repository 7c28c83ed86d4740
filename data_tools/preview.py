"""A contact sheet of a converted dataset: per class some normal and some anomalous images with their masks outlined."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fmad_dist.errors import UserError
from fmad_dist.stream.manifest import Dataset, load_dataset
from fmad_dist.stream.reader import SampleReader

TILE = 192  # pixels per side of one image on the sheet
_CAPTION = 16
_GAP = 4
_OUTLINE = (255, 32, 32)
_BACKGROUND = (24, 24, 28)
_TEXT = (230, 230, 230)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture on the sheet and the line below it."""

    picture: Image.Image
    caption: str


def contact_sheet(url: str, class_name: str | None = None, num: int = 6) -> Image.Image:
    """An RGB sheet with two rows per class: `num` normal images, and `num` anomalous ones spread over the defects.

    Raises:
        UserError: the dataset cannot be read, or has no such class.
    """
    if num < 1:
        raise UserError(f"--num {num}: give the number of images per row, at least 1.")
    dataset = load_dataset(url)
    names = list(dataset.manifest.classes)
    if class_name is not None and class_name not in names:
        raise UserError(f"--class {class_name}: not in {url}; it has {', '.join(names)}.")
    reader = SampleReader(dataset, dataset.manifest.rendition.size or TILE)
    rows = []
    for name in names if class_name is None else [class_name]:
        normal, anomalous = _chosen(dataset, name, num)
        rows.append([_tile(reader, row) for row in normal])
        if anomalous:
            rows.append([_tile(reader, row) for row in anomalous])
    return _sheet(rows)


def outline(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels just outside a bool mask (H, W), so that the defect itself stays visible."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((3, 3), bool), iterations=2) & ~binary_dilation(mask)


def _chosen(dataset: Dataset, class_name: str, num: int) -> tuple[list[int], list[int]]:
    """Rows of normal and of anomalous images."""
    own = np.flatnonzero(dataset.class_names == f"{dataset.name}/{class_name}")
    labels = dataset.labels[own]
    return _spread(own[labels == 0].tolist(), num), _spread(own[labels == 1].tolist(), num)


def _spread(rows: list[int], num: int) -> list[int]:
    """`num` rows at equal distances; they are sorted by defect, so every defect gets its share."""
    if len(rows) <= num:
        return rows
    return [rows[position * len(rows) // num] for position in range(num)]


def _tile(reader: SampleReader, row: int) -> Tile:
    sample = reader.dataset.sample(row)
    image = Image.fromarray(reader.image(row)).resize((TILE, TILE), Image.Resampling.LANCZOS)
    masks = [Image.fromarray(mask).resize((TILE, TILE), Image.Resampling.NEAREST) for mask in reader.masks(row)]
    if masks:
        marked = np.any([np.asarray(mask) > 0 for mask in masks], axis=0)  # (TILE, TILE)
        pixels = np.array(image)
        pixels[outline(marked)] = _OUTLINE
        image = Image.fromarray(pixels)
    return Tile(image, f"{sample.class_name}: {sample.defect_type} ({sample.split})")


def _sheet(rows: list[list[Tile]]) -> Image.Image:
    step_x, step_y = TILE + _GAP, TILE + _CAPTION + _GAP
    width = max(len(row) for row in rows) * step_x + _GAP
    sheet = Image.new("RGB", (width, len(rows) * step_y + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        for column, tile in enumerate(row):
            left, top = _GAP + column * step_x, _GAP + line * step_y
            sheet.paste(tile.picture, (left, top))
            draw.text((left + 2, top + TILE + 2), tile.caption, fill=_TEXT)
    return sheet
