"""Held-out normals with synthetic defects: what a training can be judged by while it runs, without the test split.

Every chosen normal is there once as it is and once with each kind of defect. Pixels, masks and ids depend on the stored
image and its sample id alone, so every checkpoint of every run on the same data meets the same images, however many
processes share them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmad_dist.defects.photograph import KINDS, with_defect
from fmad_dist.features.prepare import TrainingImages
from fmad_dist.images.codec import png
from fmad_dist.images.contact_sheet import Tile, draw_sheet
from fmad_dist.storage import Store
from fmad_dist.stream.reader import BadSample

FORMAT = "fmad-synthetic/1"  # other drawings make other numbers: count it up with every change of them
GOOD = "good"
SHEET_NAME, SHEET_ROWS = "synthetic.png", 20


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """A held-out normal (`kind` good) or one with a synthetic defect; uint8 (S, S, 3) and bool (S, S)."""

    sample_id: str
    kind: str
    pixels: np.ndarray
    mask: np.ndarray


class SyntheticSet:
    """Up to `per_class` held-out normals of each class, and what is drawn on them.

    `rows` are their global indices, int64 [n], ascending. They come from `data.split.held_out`, which no training step
    has seen; of a class with more those with the smallest SHA-256 of their sample id are taken.
    """

    def __init__(self, data: TrainingImages, per_class: int) -> None:
        self.data = data
        held_out = data.split.held_out
        numbers = data.mixture.class_numbers[held_out]
        chosen = [_first_by_hash(data, held_out[numbers == number], per_class) for number in np.unique(numbers)]
        self.rows = np.sort(np.concatenate(chosen))
        assert not np.isin(self.rows, data.mixture.rows("test")).any(), "held-out normals are training normals"

    def class_name(self, row: int) -> str:
        return self.data.mixture.class_names[self.data.mixture.class_numbers[row]]

    def images(self, row: int) -> list[SyntheticImage]:
        """The normal and its versions with defects, without those that cannot be seen on it.

        Raises:
            BadSample: the stored image is damaged.
        """
        sample_id = self.data.mixture.sample_id(row)
        pixels = self.data.images.read(row).permute(1, 2, 0).numpy()
        found = [SyntheticImage(sample_id, GOOD, pixels, np.zeros(pixels.shape[:2], bool))]
        for kind in KINDS:
            drawn = with_defect(pixels, kind, sample_id)
            if drawn is not None:
                found.append(SyntheticImage(f"{sample_id}+{kind}", kind, drawn.pixels, drawn.mask))
        return found


def write_sheet(images: SyntheticSet, folder: Path) -> None:
    """Write `synthetic.png`, for people to judge whether such defects could happen: one row per class, of the first 20,
    with a held-out normal and its versions, the masks outlined."""
    first = {images.class_name(row): row for row in images.rows[::-1].tolist()}
    rows = []
    for name, row in sorted(first.items())[:SHEET_ROWS]:
        try:
            found = images.images(row)
        except BadSample:  # said where it is scored
            continue
        rows.append([Tile(one.pixels, f"{name}: {one.kind}", one.mask if one.kind != GOOD else None) for one in found])
    if not rows:
        return
    Store(folder).write(SHEET_NAME, png(draw_sheet(rows)))


def _first_by_hash(data: TrainingImages, rows: np.ndarray, count: int) -> np.ndarray:
    ranks = [hashlib.sha256(sample_id.encode()).digest() for sample_id in data.mixture.sample_ids(rows)]
    return rows[sorted(range(len(rows)), key=ranks.__getitem__)[:count]]
