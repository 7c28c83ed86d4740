"""Small trees in the mvtec layout, with the awkward files that real ones have."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def noise(seed: int, shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def spot(height: int = SIDE, width: int = SIDE, at: tuple[int, int] = (7, 9), extent: int = 4) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[at[0] : at[0] + extent, at[1] : at[1] + extent] = 255
    return mask


def make_class(folder: Path, seed: int = 0, num_train: int = 3) -> None:
    """train/good, test/good and one defect `hole`, all RGB PNG of SIDE x SIDE."""
    for number in range(num_train):
        save(folder / "train" / "good" / f"{number:03d}.png", noise(seed + number))
    for number in range(2):
        save(folder / "test" / "good" / f"{number:03d}.png", noise(seed + 50 + number))
        save(folder / "test" / "hole" / f"{number:03d}.png", noise(seed + 70 + number))
        save(folder / "ground_truth" / "hole" / f"{number:03d}_mask.png", spot())


def make_tree(root: Path) -> Path:
    """Two plain classes, and one of mixed sizes, modes and file types, under a root whose path holds traps."""
    tree = root / "good Normal" / "train"
    make_class(tree / "bolt", 100)
    make_class(tree / "nut", 300)
    make_mixed_class(tree / "odd")
    (tree / "readme.txt").write_text("licensed under CC0", encoding="utf-8")
    (tree / "bolt" / ".DS_Store").write_bytes(b"x")
    (tree / "bolt" / "test" / "hole" / "readme.txt").write_text("notes", encoding="utf-8")
    return tree


def make_mixed_class(folder: Path) -> None:
    train, test, truth = folder / "train" / "good", folder / "test", folder / "ground_truth"
    save(train / "grey.png", noise(1, (60, 30)))
    save(train / "palette.png", noise(2), "P")
    save(train / "deep.png", noise(3, (50, 50)).astype(np.uint16) * 257)
    save(train / "small.bmp", noise(4, (20, 24, 3)))
    save(train / "photo.jpg", noise(5, (64, 48, 3)))
    save(train / "scan.tif", noise(6, (44, 40, 3)))
    save(train / "name.with.dots.jpeg", noise(7))
    save(test / "speck" / "000.png", noise(8, (200, 100, 3)))
    save(truth / "speck" / "000_mask.png", spot(200, 100, (151, 51), 1))  # one pixel that nearest resizing loses
    save(test / "bent" / "000.jpg", noise(9))
    two_parts = np.maximum(spot(at=(2, 3)), spot(at=(30, 31)))
    indices = Image.fromarray((two_parts > 0).astype(np.uint8), "P")
    indices.putpalette([0, 0, 0, 0, 0, 0])  # both colours black: only the indices tell
    (truth / "bent").mkdir(parents=True)
    indices.save(truth / "bent" / "000_mask.png")
