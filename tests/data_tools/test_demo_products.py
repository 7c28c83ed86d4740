from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import demo_products
from data_tools.conversion.convert import Conversion, convert
from data_tools.demo.product import is_visible, photograph
from data_tools.demo_products import PRODUCTS, _defective, make_demo_tree
from data_tools.lint import lint
from fmad_dist.base.errors import UserError

CASES = [(product, defect) for product in PRODUCTS for defect in product.defects]


@pytest.fixture
def small(monkeypatch):
    """The same tree with fewer images, so that tests are quick."""
    monkeypatch.setattr(demo_products, "NUM_TRAIN", 2)
    monkeypatch.setattr(demo_products, "NUM_TEST_GOOD", 1)
    monkeypatch.setattr(demo_products, "NUM_TEST_DEFECT", 6)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(small, tmp_path):
    make_demo_tree(tmp_path / "a", size=96)
    make_demo_tree(tmp_path / "b", size=96)
    make_demo_tree(tmp_path / "c", size=96, seed=1)
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b")
    assert first["gear/train/good/000.png"] != files(tmp_path / "c")["gear/train/good/000.png"]
    assert len(first) == 5 * (2 + 1 + 2 * 6) + 1


def test_demo_tree_converts_and_lints_clean(small, tmp_path):
    make_demo_tree(tmp_path / "tree", size=96)
    out = str(tmp_path / "out")
    manifest = convert(
        Conversion(layout="mvtec", dataset="demo", source=tmp_path / "tree", out=out, size=96, num_workers=1)
    ).manifest
    assert manifest.licence.startswith("CC0")
    assert lint(out).findings == ()


@pytest.mark.parametrize(("product", "defect"), CASES, ids=lambda value: getattr(value, "name", value))
def test_masks_are_exact_and_defects_visible_but_bounded(product, defect):
    for number in range(3):
        defective, mask = _defective(product, 256, (0, 2, number), defect)
        normal = nearest_normal(product, defective, number)
        assert np.array_equal(normal[~mask], defective[~mask])
        assert (normal != defective).reshape(256, 256, -1).any(axis=-1)[mask].all()
        assert 26 <= mask.sum() <= 0.12 * mask.size


def nearest_normal(product, defective: np.ndarray, number: int) -> np.ndarray:
    """The defect-free photograph of the same specimen, whichever attempt it was."""
    twins = [photograph(product, 256, (0, 2, number, attempt), held_out=True) for attempt in range(3)]
    return min(twins, key=lambda twin: np.count_nonzero(twin != defective))


def test_a_defect_that_does_not_show_is_told():
    normal = np.full((100, 100), 90, np.uint8)
    faint, clear = normal.copy(), normal.copy()
    faint[:50] += 9
    clear[0, :4] += 10
    assert not is_visible(normal, faint)
    assert is_visible(normal, clear)


def test_saved_masks_are_those_of_the_rendering(small, tmp_path):
    make_demo_tree(tmp_path / "tree", size=96)
    for product in PRODUCTS:
        defect = product.defects[0]
        defective, mask = _defective(product, 96, (0, 2, 0), defect)
        assert np.array_equal(read(tmp_path / "tree" / product.name / "test" / defect / "000.png"), defective)
        saved = read(tmp_path / "tree" / product.name / "ground_truth" / defect / "000_mask.png")
        assert np.array_equal(saved, mask * 255)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_interrupted_tree_is_not_taken_for_a_whole_one(small, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(demo_products, "PRODUCTS", (*PRODUCTS[:1], None))
        with pytest.raises(AttributeError):
            make_demo_tree(tmp_path / "tree", size=96)
    assert not (tmp_path / "tree").exists()
    make_demo_tree(tmp_path / "tree", size=96)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_folder_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty"):
        make_demo_tree(tmp_path)
