"""The images of the data benchmarks: demo products, as 256-px files and as 1024-px originals of realistic size."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.demo_products import make_demo_tree


def demo_images(folder: Path) -> list[Path]:
    if not folder.exists():
        make_demo_tree(folder)
    return sorted(folder.glob("*/train/good/*.png")) + sorted(folder.glob("*/test/good/*.png"))


def small_tree(root: Path, num: int) -> Path:
    """`num` training images of 256 px in one class of the mvtec layout: the demo images and their rotations."""
    sources = demo_images(root / "demo")
    tree = root / f"small-{num}"
    for number in range(num):
        image = Image.open(sources[number % len(sources)]).convert("RGB").resize((256, 256))
        _save(image.rotate(90 * (number // len(sources))), tree, number)
    return tree


def large_tree(root: Path, num: int) -> Path:
    """`num` originals of 1024 px with sensor noise, about 2 MB each as PNG."""
    sources = demo_images(root / "demo")
    tree, rng = root / f"large-{num}", np.random.default_rng(0)
    for number in range(num):
        image = Image.open(sources[number % len(sources)]).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)
        noisy = np.asarray(image).astype(np.int16) + np.rint(rng.normal(0, 1.5, (1024, 1024, 1))).astype(np.int16)
        _save(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), tree, number)
    return tree


def _save(image: Image.Image, tree: Path, number: int) -> None:
    """Training images, and every 50th also as the test image that a tree must have."""
    for folder in [tree / "product/train/good"] + [tree / "product/test/good"] * (number == 0):
        path = folder / f"{number:05d}.png"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            image.save(path, compress_level=6)
