"""A contact sheet of a converted dataset: per class some normal and some anomalous images with their masks outlined."""

import numpy as np
from PIL import Image

from fmad_dist.base.errors import UserError
from fmad_dist.images.contact_sheet import TILE, Tile, draw_sheet
from fmad_dist.stream.dataset import Dataset, load_dataset
from fmad_dist.stream.reader import SampleReader


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
        rows.append([_tile(reader, index) for index in normal])
        if anomalous:
            rows.append([_tile(reader, index) for index in anomalous])
    return draw_sheet(rows)


def _chosen(dataset: Dataset, class_name: str, num: int) -> tuple[list[int], list[int]]:
    """Indices of normal and of anomalous images."""
    own = np.flatnonzero(dataset.class_names == f"{dataset.name}/{class_name}")
    labels = dataset.labels[own]
    return _spread(own[labels == 0].tolist(), num), _spread(own[labels == 1].tolist(), num)


def _spread(indices: list[int], num: int) -> list[int]:
    """At most `num` images at equal distances; they are sorted by defect, so every defect gets its share."""
    count = min(num, len(indices))
    return [indices[number * len(indices) // count] for number in range(count)]


def _tile(reader: SampleReader, index: int) -> Tile:
    sample = reader.dataset.sample(index)
    masks = [mask > 0 for mask in reader.masks(index)]
    marked = np.any(masks, axis=0) if masks else None
    return Tile(reader.image(index), f"{sample.class_name}: {sample.defect_type} ({sample.split})", marked)
