"""A contact sheet of a converted dataset: per class some normal and some anomalous images with their masks outlined."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fmad_dist.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import Dataset, Sample, Span, load_dataset

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
    store = Store(url)
    rows = []
    for name in names if class_name is None else [class_name]:
        normal, anomalous = _chosen(dataset, name, num)
        rows.append([_tile(store, sample) for sample in normal])
        if anomalous:
            rows.append([_tile(store, sample) for sample in anomalous])
    return _sheet(rows)


def outline(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels just outside a bool mask (H, W), so that the defect itself stays visible."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((3, 3), bool), iterations=2) & ~binary_dilation(mask)


def _chosen(dataset: Dataset, class_name: str, num: int) -> tuple[list[Sample], list[Sample]]:
    column = dataset.table.column("class_name").to_pylist()
    samples = [dataset.sample(row) for row, name in enumerate(column) if name == class_name]
    normal = [sample for sample in samples if not sample.label]
    anomalous = [sample for sample in samples if sample.label]
    return _spread(normal, num), _spread(anomalous, num)


def _spread(samples: list[Sample], num: int) -> list[Sample]:
    """`num` samples at equal distances; the samples are sorted by defect, so every defect gets its share."""
    if len(samples) <= num:
        return samples
    return [samples[position * len(samples) // num] for position in range(num)]


def _tile(store: Store, sample: Sample) -> Tile:
    image = _read(store, sample, sample.image).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
    if sample.masks:
        masks = [_read(store, sample, span).resize((TILE, TILE), Image.Resampling.NEAREST) for span in sample.masks]
        marked = np.any([np.asarray(mask) > 0 for mask in masks], axis=0)  # (TILE, TILE)
        pixels = np.array(image)
        pixels[outline(marked)] = _OUTLINE
        image = Image.fromarray(pixels)
    return Tile(image, f"{sample.class_name}: {sample.defect_type} ({sample.split})")


def _read(store: Store, sample: Sample, span: Span) -> Image.Image:
    data = store.read_range(sample.shard, span.offset, span.offset + span.size)
    try:
        return Image.open(io.BytesIO(data))
    except OSError:
        raise UserError(
            f"{store.url_of(sample.shard)}: sample {sample.sample_id} cannot be decoded; run `fmad data lint`."
        ) from None


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
