"""Synthetic defects: masks that fit what changed, the same picture for the same key, the product and its ground."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.defects.photograph import KINDS, LEAST_CHANGED, VISIBLE, product_of, visible_defect, with_defect
from fmad_dist.defects.pieces import perlin

SIDE = 64


def textured(seed: int, grey: bool = False) -> np.ndarray:
    """Blobs of colour without a background."""
    coarse = np.random.default_rng(seed).integers(30, 226, (8, 8, 1 if grey else 3))
    fine = np.kron(coarse, np.ones((SIDE // 8, SIDE // 8, 1)))
    return np.broadcast_to(fine, (SIDE, SIDE, 3)).astype(np.uint8)


def disc(radius: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A disc with a ring of its own on a plain, slightly noisy ground; and where it is."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    inside = np.hypot(x, y) < radius
    pixels = np.where(inside, np.where(np.hypot(x, y) < radius / 2, 90, 140), 225)[..., None].repeat(3, axis=2)
    return (pixels + np.random.default_rng(0).integers(-3, 4, pixels.shape)).astype(np.uint8), inside


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), grey=st.booleans())
def test_the_mask_is_where_it_changed(kind: str, seed: int, grey: bool) -> None:
    pixels = textured(seed, grey)
    found = with_defect(pixels, kind, str(seed))
    assert found is not None
    change = np.abs(found.pixels.astype(int) - pixels).max(axis=-1)
    assert found.pixels.dtype == np.uint8
    assert not change[~found.mask].any()
    assert (change[found.mask] >= VISIBLE).mean() >= LEAST_CHANGED
    assert 0 < found.mask.mean() < 0.5
    if grey:
        assert (found.pixels == found.pixels[..., :1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_alone_decides(kind: str) -> None:
    pixels = textured(1)
    one, again, other = (with_defect(pixels, kind, key) for key in ("a", "a", "b"))
    assert one is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(one.pixels, again.pixels)
    assert np.array_equal(one.mask, again.mask)
    assert not np.array_equal(one.mask, other.mask)


def test_what_cannot_be_seen_is_not_drawn() -> None:
    blank = np.full((SIDE, SIDE, 3), 128, np.uint8)
    assert with_defect(blank, "deformation", "a") is None
    assert with_defect(blank, "cut_paste", "a") is not None  # a patch has other tones


def test_a_mask_has_neither_specks_nor_holes_nor_what_is_too_faint() -> None:
    pixels = np.full((256, 256, 3), 100, np.uint8)
    changed = pixels.copy()
    changed[50:70, 80:100] = 150
    changed[60, 90] = 100  # a hole
    changed[200, 200] = 255  # a speck
    changed[10:20, 10:20] = 100 + VISIBLE - 1  # too faint
    changed[50:70, 103:110] = 50  # another spot, three pixels away
    found = visible_defect(pixels, changed)
    assert found is not None
    wanted = np.zeros((256, 256), bool)
    wanted[50:70, 80:100] = wanted[50:70, 103:110] = True
    assert np.array_equal(found.mask, wanted)
    assert np.array_equal(found.pixels, np.where(wanted[..., None], changed, 100))
    assert visible_defect(pixels, pixels) is None
    small = pixels.copy()
    small[:5, :5] = 0  # 25 pixels are less than 0.0004 of the picture, 30 are not
    assert visible_defect(pixels, small) is None
    small[:5, :6] = 0
    assert visible_defect(pixels, small) is not None


def test_defects_lie_on_the_product() -> None:
    pixels, inside = disc()
    found = product_of(pixels)
    assert (found & inside).sum() / (found | inside).sum() > 0.93
    for kind in KINDS.keys() - {"deformation"}:  # it may push the outline outwards
        drawn = with_defect(pixels, kind, "a")
        assert drawn is not None
        assert not (drawn.mask & ~found).any(), kind


def test_without_a_plain_ground_everything_is_product() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for pixels in (textured(0), noise, np.zeros((SIDE, SIDE, 3), np.uint8)):
        assert product_of(pixels).all()


def test_perlin_noise_is_bounded_smooth_and_zero_at_the_corners() -> None:
    noise = perlin(np.random.default_rng(0), 96, (4, 8))
    assert noise.shape == (96, 96)
    assert 0.3 < np.abs(noise).max() <= 1.0
    assert np.abs(np.diff(noise, axis=0)).max() < 0.25
    assert perlin(np.random.default_rng(0), 1, (2, 2))[0, 0] == 0.0  # the one pixel's centre is a corner
