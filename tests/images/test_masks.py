import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmad_dist.images.masks import MaskDoubt, doubts_about, marked_pixels, mask_on_map, raw_mask, resize_mask

HERE = Path("image.png")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_nearest_of_a_known_mask():
    mask = np.zeros((4, 4), bool)
    mask[2:, :2] = True
    small, pooled = resize_mask(mask, 2)
    assert small.tolist() == [[False, False], [True, False]]
    assert not pooled


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 40), seed=st.integers(0, 99)
)  # fmt: skip
def test_a_defect_never_vanishes_and_never_appears(height, width, size, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0.0, 0.01, 0.3])
    small, pooled = resize_mask(mask, size)
    assert small.shape == (size, size)
    assert small.any() == mask.any()
    assert not (pooled and not mask.any())


@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_value_but_zero_is_defect(value):
    raw = np.array([[0, value]], np.uint8)
    assert marked_pixels(raw_mask(encoded(Image.fromarray(raw)), HERE)).tolist() == [[False, True]]


def test_alpha_of_a_mask_is_no_defect():
    raw = np.zeros((1, 2, 4), np.uint8)
    raw[..., 3] = 255
    raw[0, 1, 2] = 9
    assert marked_pixels(raw_mask(encoded(Image.fromarray(raw, "RGBA")), HERE)).tolist() == [[False, True]]


def test_what_is_transparent_is_no_defect():
    raw = np.full((1, 2, 4), 255, np.uint8)
    raw[0, 0, 3] = 0
    assert marked_pixels(raw_mask(encoded(Image.fromarray(raw, "RGBA")), HERE)).tolist() == [[False, True]]
    assert marked_pixels(raw_mask(encoded(Image.fromarray(raw[..., 2:], "LA")), HERE)).tolist() == [[False, True]]
    palette = Image.fromarray(np.array([[1, 2]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255, 255, 0, 0])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", transparency=bytes([255, 0, 128]))
    assert raw_mask(buffer.getvalue(), HERE).tolist() == [[0, 2]]


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "RGB"), ("WEBP", "RGB")])
def test_a_lossy_mask_is_cut_at_half(kind, mode):
    y, x = np.mgrid[:64, :64]
    mask = (np.hypot(y - 30, x - 34) < 15).astype(np.uint8) * 255
    data = encoded(Image.fromarray(mask).convert(mode), kind)
    grown = (np.asarray(Image.open(io.BytesIO(data)).convert("L")) != 0).sum() / (mask != 0).sum()
    assert grown > (1.05 if kind == "JPEG" else 1.0)
    found = marked_pixels(raw_mask(data, HERE))
    assert np.abs(found.astype(int) - (mask != 0)).sum() <= 0.02 * (mask != 0).sum()
    assert doubts_about(data, raw_mask(data, HERE)) == [MaskDoubt.LOSSY]


def test_a_lossless_webp_is_as_it_is():
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[2:4, 2:5] = 1
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="WEBP", lossless=True)
    assert marked_pixels(raw_mask(buffer.getvalue(), HERE)).sum() == 6


def test_doubtful_masks():
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    blurred = mask.copy()
    blurred[3, 4:8] = 80
    photograph = np.random.default_rng(0).integers(1, 255, (16, 16), np.uint8)
    both = [MaskDoubt.SHADES, MaskDoubt.COVERAGE]
    cases = {"fine": (mask, []), "inverted": (255 - mask, [MaskDoubt.COVERAGE]), "blurred": (blurred, both[:1])}
    cases |= {"background 1": (np.maximum(mask, 1), both), "the picture itself": (photograph, both)}
    for name, (raw, expected) in cases.items():
        data = encoded(Image.fromarray(raw))
        assert doubts_about(data, raw_mask(data, HERE)) == expected, name
    assert doubts_about(encoded(Image.fromarray(blurred)), blurred, ids_expected=True) == []


def test_masks_are_binarised_by_not_zero_and_joined() -> None:
    ids = np.zeros((4, 4), dtype=np.uint8)
    ids[0, 0] = 1
    other = np.zeros((2, 2), dtype=np.uint16)
    other[1, 1] = 300
    joined = mask_on_map([ids, other], 4)
    assert joined.sum() == 5
    assert joined[0, 0]
    assert joined[2:, 2:].all()
    assert mask_on_map([], 4).sum() == 0
    assert mask_on_map([ids], 8).sum() == 4
