"""Writes the demo dataset: an MVTec-style tree of rendered products, the same bytes on every run, no download."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.demo.blister import BLISTER
from data_tools.demo.brick import BRICK
from data_tools.demo.fabric import FABRIC
from data_tools.demo.gear import GEAR
from data_tools.demo.plate import PLATE
from data_tools.demo.product import Product, defect_mask, is_visible, photograph
from fmad_dist.base.errors import UserError
from fmad_dist.images.codec import png
from fmad_dist.storage.scratch import published_folder

PRODUCTS: tuple[Product, ...] = (BLISTER, BRICK, FABRIC, GEAR, PLATE)
NUM_TRAIN, NUM_TEST_GOOD, NUM_TEST_DEFECT = 44, 13, 18
_THREADS = 4
_ATTEMPTS = 20
_TRAIN, _GOOD, _DEFECT = 0, 1, 2  # random streams
_SOURCE_NOTE = """\
licence: CC0 1.0 (rendered; the brick surface is a crop of a CC0 photograph shipped with scikit-image)
source: rendered by fmad data demo, seed {seed}
"""


def make_demo_tree(out: Path, *, seed: int = 0, size: int = 256) -> None:
    """Write `<out>/<class>/{train,test,ground_truth}/...` for every product, images of `size` x `size` pixels.

    Defects get exact masks: every pixel that differs from a photograph of the same specimen without the defect. The
    tree appears at `out` when it is complete, so a folder that exists is complete.

    Raises:
        UserError: `out` holds something already, or cannot be written.
    """
    with published_folder(out, "the demo images") as folder, ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda product: _write_product(folder / product.name, product, seed, size), PRODUCTS))
        (folder / "SOURCE.txt").write_text(_SOURCE_NOTE.format(seed=seed), encoding="utf-8")


def _write_product(folder: Path, product: Product, seed: int, size: int) -> None:
    for number in range(NUM_TRAIN):
        _save(folder / "train" / "good", f"{number:03d}", photograph(product, size, (seed, _TRAIN, number)))
    for number in range(NUM_TEST_GOOD):
        pixels = photograph(product, size, (seed, _GOOD, number), held_out=True)
        _save(folder / "test" / "good", f"{number:03d}", pixels)
    kinds = product.defects
    for number in range(NUM_TEST_DEFECT):
        defect, stem = kinds[number % len(kinds)], f"{number // len(kinds):03d}"
        pixels, mask = _defective(product, size, (seed, _DEFECT, number), defect)
        _save(folder / "test" / defect, stem, pixels)
        _save(folder / "ground_truth" / defect, f"{stem}_mask", mask.astype(np.uint8) * 255)


def _defective(product: Product, size: int, seed: tuple[int, ...], defect: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a defective specimen, and its bool mask (S, S). Defects that do not show are drawn again."""
    for attempt in range(_ATTEMPTS):
        defective = photograph(product, size, (*seed, attempt), defect, held_out=True)
        normal = photograph(product, size, (*seed, attempt), held_out=True)
        if is_visible(normal, defective):
            return defective, defect_mask(normal, defective)
    raise UserError(f"--size {size}: too small to show the defect {defect} of {product.name}; use 64 or more.")


def _save(folder: Path, stem: str, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.png").write_bytes(png(Image.fromarray(pixels)))
