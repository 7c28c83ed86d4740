"""Source trees of many small images."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_plain_tree(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    """Per class `counts` training images and 2 + 2 test images of noise with a marked square, in the mvtec layout."""
    for number, (name, count) in enumerate(counts.items()):
        for split, kind, images in (("train", "good", count), ("test", "good", 2), ("test", "hole", 2)):
            for index in range(images):
                pixels = np.random.default_rng([number, images, index]).integers(0, 256, (side, side, 3), np.uint8)
                _save(pixels, root / name / split / kind / f"{index:04d}.png")
                if kind == "hole":
                    mask = np.zeros((side, side), np.uint8)
                    mask[4:9, 5:11] = 255
                    _save(mask, root / name / "ground_truth" / kind / f"{index:04d}_mask.png")
    return root


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
