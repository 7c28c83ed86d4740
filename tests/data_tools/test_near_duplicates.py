"""Copies are found, different photographs of aligned products are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data_tools.conversion.convert import Conversion, convert
from data_tools.demo_products import make_demo_tree
from data_tools.lint import lint
from data_tools.near_duplicates import nearest_of

REAL = Path(__file__).parents[3] / "shared" / "data"


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


COPIES = {
    "jpeg": lambda image: jpeg(image, 60),
    "resized": lambda image: image.resize((round(image.width * 0.97), round(image.height * 0.97))).resize(image.size),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
}


def planted(tree: Path) -> dict[str, str]:
    """Add one copy of each kind per class to the test images; returns test id -> training id."""
    expected = {}
    for folder in sorted(path for path in tree.iterdir() if (path / "train").is_dir()):
        originals = sorted((folder / "train" / "good").iterdir())
        for number, (name, make) in enumerate(COPIES.items()):
            original = originals[number * len(originals) // 3]
            make(Image.open(original).convert("RGB")).save(folder / "test" / "good" / f"zz-{name}.png")
            expected[f"t/{folder.name}/test/good/zz-{name}"] = f"t/{folder.name}/train/good/{original.stem}"
    return expected


def warned(tree: Path, out: Path) -> dict[str, str]:
    convert(Conversion(layout="mvtec", dataset="t", source=tree, out=str(out), size=128, num_workers=1))
    report = lint(str(out))
    assert report.num_errors == 0
    near = [found for found in report.findings if "nearly the training image" in found.message]
    return {found.where: found.message.split("image ")[1].split(" (")[0] for found in near}


@pytest.mark.slow
def test_rendered_products(tmp_path: Path) -> None:
    make_demo_tree(tmp_path / "tree")
    assert warned(tmp_path / "tree", tmp_path / "clean") == {}
    expected = planted(tmp_path / "tree")
    assert len(expected) == 15
    assert warned(tmp_path / "tree", tmp_path / "copied") == expected


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images beside the checkout")
def test_real_products(tmp_path: Path) -> None:
    import shutil

    for folder in sorted(REAL.glob("*/*/")):
        if folder.parent.name != "highres":  # the same products at another size
            shutil.copytree(folder, tmp_path / "tree" / folder.name)
    expected = planted(tmp_path / "tree")
    found = warned(tmp_path / "tree", tmp_path / "copied")
    assert expected.items() <= found.items()
    # 31 test images of this category are tiles of the training images at another exposure.
    assert {name.split("/")[1] for name in found.keys() - expected.keys()} == {"magnetic_tile"}
    assert len(found) == len(expected) + 31


def test_nearest_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    tested, trained = (rng.normal(size=(n, 30)) for n in (7, 5))
    tested, trained = (v / np.sqrt((v**2).mean(axis=1, keepdims=True)) for v in (tested, trained))
    positions, distances = nearest_of(tested, trained)
    for row in range(7):
        loop = [np.sqrt(((tested[row] - other) ** 2).mean()) for other in trained]
        assert positions[row] == int(np.argmin(loop))
        assert distances[row] == pytest.approx(min(loop))
