"""The five categories in memory: images, masks and splits, and held-out normals with synthetic defects."""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmad_dist.defects.photograph import KINDS, with_defect

CATEGORIES = (
    *("mvtec_ad/bottle", "mvtec_ad/toothbrush", "mpdd/metal_plate"),
    *("surface/magnetic_tile", "surface/kolektor_sdd"),
)
HELD_OUT = 0.1  # of each category's training normals
SIDE = 256


@dataclass(frozen=True)
class Split:
    """`images` uint8 [N, 3, 256, 256], `masks` bool [N, 256, 256], `classes` int64 [N]."""

    images: Tensor
    masks: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Data:
    """`train` without the held-out normals; `synthetic` are those and what was drawn on them."""

    train: Split
    synthetic: Split
    test: Split


def load(root: Path, processes: int) -> Data:
    train, held_out, test = [], [], []
    for number, name in enumerate(CATEGORIES):
        normals = sorted((root / name / "train/good").iterdir())
        normals.sort(key=lambda path: hashlib.sha256(f"{name}/{path.stem}".encode()).digest())
        count = max(4, round(HELD_OUT * len(normals)))
        held_out += [(path, number) for path in normals[:count]]
        train += [(path, number) for path in normals[count:]]
        test += [(path, number) for path in test_paths(root, name)]
    with ProcessPoolExecutor(processes) as pool:
        read = [list(pool.map(_read, part, chunksize=8)) for part in (train, test)]
        drawn = [one for some in pool.map(_draw, held_out, chunksize=2) for one in some]
    return Data(_split(read[0]), _split(drawn), _split(read[1]))


def test_paths(root: Path, category: str) -> list[Path]:
    """The files of a category's test images in the order of `load`; their folder is the kind of defect."""
    return [path for path in sorted((root / category / "test").glob("*/*")) if path.is_file()]


def _split(rows: list[tuple[np.ndarray, np.ndarray, int]]) -> Split:
    images, masks, classes = zip(*rows, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(np.stack(masks)), torch.tensor(classes))


def _read(item: tuple[Path, int]) -> tuple[np.ndarray, np.ndarray, int]:
    path, number = item
    mask = np.zeros((SIDE, SIDE), bool)
    if path.parent.name != "good":
        folder = path.parents[2] / "ground_truth" / path.parent.name
        with Image.open(next(iter(sorted(folder.glob(f"{path.stem}*"))))) as drawn:
            mask = np.asarray(drawn.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
    return _pixels(path), mask, number


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _draw(item: tuple[Path, int]) -> list[tuple[np.ndarray, np.ndarray, int]]:
    path, number = item
    pixels = _pixels(path)
    rows = [(pixels, np.zeros((SIDE, SIDE), bool), number)]
    for kind in KINDS:
        found = with_defect(pixels, kind, f"{CATEGORIES[number]}/{path.stem}")
        if found is not None:
            rows.append((found.pixels, found.mask, number))
    return rows
