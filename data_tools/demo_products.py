"""Writes the demo dataset: an MVTec-style tree of rendered products, the same bytes on every run, no download."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.demo.blister import BLISTER
from data_tools.demo.brick import BRICK
from data_tools.demo.fabric import FABRIC
from data_tools.demo.gear import GEAR
from data_tools.demo.plate import PLATE
from data_tools.demo.product import Product, flaw_mask, photograph, shows
from data_tools.rendition import png_bytes
from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import TEMPORARY_PREFIX

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
    tree appears at `out` when it is complete, so a folder that exists is a whole one.

    Raises:
        UserError: `out` holds something already, or cannot be written.
    """
    unfinished = out.parent / f"{TEMPORARY_PREFIX}{out.name}"
    try:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: is not empty; give a new folder for the demo images.")
        shutil.rmtree(unfinished, ignore_errors=True)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda product: _write_product(unfinished / product.name, product, seed, size), PRODUCTS))
        (unfinished / "SOURCE.txt").write_text(_SOURCE_NOTE.format(seed=seed), encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({first_line(error)}); choose another folder.") from None


def _write_product(folder: Path, product: Product, seed: int, size: int) -> None:
    for number in range(NUM_TRAIN):
        _save(folder / "train" / "good", f"{number:03d}", photograph(product, size, (seed, _TRAIN, number)))
    for number in range(NUM_TEST_GOOD):
        pixels = photograph(product, size, (seed, _GOOD, number), held_out=True)
        _save(folder / "test" / "good", f"{number:03d}", pixels)
    names = sorted(product.flaws)
    for number in range(NUM_TEST_DEFECT):
        flaw, position = names[number % len(names)], number // len(names)
        flawed, mask = _defective(product, size, (seed, _DEFECT, number), flaw)
        _save(folder / "test" / flaw, f"{position:03d}", flawed)
        _save(folder / "ground_truth" / flaw, f"{position:03d}_mask", mask.astype(np.uint8) * 255)


def _defective(product: Product, size: int, seed: tuple[int, ...], flaw: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a defective specimen, and its bool mask (S, S). Defects that do not show are drawn again."""
    for attempt in range(_ATTEMPTS):
        flawed = photograph(product, size, (*seed, attempt), flaw, held_out=True)
        normal = photograph(product, size, (*seed, attempt), held_out=True)
        if shows(normal, flawed):
            return flawed, flaw_mask(normal, flawed)
    raise UserError(f"--size {size}: too small to show the defect {flaw} of {product.name}; use 64 or more.")


def _save(folder: Path, stem: str, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.png").write_bytes(png_bytes(Image.fromarray(pixels)))
