"""`synthetic.png`: what the follower draws, for people to judge whether such defects could happen."""

from pathlib import Path

from fmad_dist.contact_sheet import Tile, draw_sheet
from fmad_dist.evaluation.synthetic import GOOD, SyntheticSet
from fmad_dist.images import png
from fmad_dist.storage import Store
from fmad_dist.stream.reader import BadSample

NAME = "synthetic.png"
MAX_ROWS = 20


def write_sheet(images: SyntheticSet, folder: Path) -> None:
    """One row per class, of the first 20: a held-out normal and its versions with the masks outlined."""
    first = {images.class_name(row): row for row in images.rows[::-1].tolist()}
    rows = []
    for name, row in sorted(first.items())[:MAX_ROWS]:
        try:
            found = images.images(row)
        except BadSample:  # said where it is scored
            continue
        rows.append([Tile(one.pixels, f"{name}: {one.kind}", one.mask if one.kind != GOOD else None) for one in found])
    if not rows:
        return
    Store(folder).write(NAME, png(draw_sheet(rows)))
