import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools.rendition import binary_mask
from fmad_dist.images import to_rgb
from fmad_dist.masks import resize_mask

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
    assert binary_mask(encoded(Image.fromarray(raw)), HERE).tolist() == [[False, True]]


def test_alpha_of_a_mask_is_no_defect():
    raw = np.zeros((1, 2, 4), np.uint8)
    raw[..., 3] = 255
    raw[0, 1, 2] = 9
    assert binary_mask(encoded(Image.fromarray(raw, "RGBA")), HERE).tolist() == [[False, True]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_common_mode_becomes_rgb(mode):
    assert to_rgb(Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode), HERE).mode == "RGB"
