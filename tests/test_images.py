import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmad_dist.errors import UserError
from fmad_dist.images import open_image, square_rgb, to_rgb


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def rgb_of(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image, "here"))


NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_keep_every_pixel(kind: str) -> None:
    np.testing.assert_array_equal(open_image(encoded(Image.fromarray(NOISE), kind), "x"), NOISE)


@pytest.mark.parametrize("keep", [0, 10, 200, -60])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_cut_file_is_named(kind: str, keep: int) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UserError, match=r"^s3://bucket/a\.png: cannot be decoded as an image"):
        open_image(data[:keep], "s3://bucket/a.png")


def test_text_is_no_image() -> None:
    with pytest.raises(UserError, match=r"a\.png"):
        open_image(b"hello", "a.png")


def test_a_picture_bomb_is_a_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(NOISE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="huge"):
        open_image(data, "huge.png")


def test_grey_becomes_three_equal_channels() -> None:
    grey = NOISE[..., 0]
    np.testing.assert_array_equal(rgb_of(Image.fromarray(grey)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (128, 0), (129, 1), (32768, 128), (65535, 255)])
def test_16_bit_greys_keep_their_range(value: int, expected: int) -> None:
    image = open_image(encoded(Image.fromarray(np.full((4, 4), value, np.uint16))), "x")
    assert np.unique(rgb_of(image)).tolist() == [expected]


def test_a_dark_16_bit_image_is_not_stretched() -> None:
    dark = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 257)
    assert rgb_of(dark)[..., 0].ravel().tolist() == list(range(16))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_values_outside_16_bit_are_refused(value: int) -> None:
    with pytest.raises(UserError, match=r"deep\.tif: .*16 bit"):
        to_rgb(Image.fromarray(np.full((4, 4), value, np.int32)), "deep.tif")


def test_floating_point_is_refused() -> None:
    with pytest.raises(UserError, match=r"depth\.tif: floating-point"):
        to_rgb(Image.fromarray(np.zeros((4, 4), np.float32)), "depth.tif")


def test_palettes_are_looked_up() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert rgb_of(image).tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]


def test_alpha_is_dropped_not_blended() -> None:
    pixels = np.dstack([NOISE, np.full((20, 30), 7, np.uint8)])
    np.testing.assert_array_equal(rgb_of(Image.fromarray(pixels)), NOISE)


def test_one_bit_images_become_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert rgb_of(image).tolist() == [[[255] * 3, [0] * 3]]


def test_a_stored_rendition_is_not_resampled() -> None:
    square = NOISE[:20, :20]
    np.testing.assert_array_equal(square_rgb(Image.fromarray(square), 20, "x"), square)


def test_squeezing_is_antialiased() -> None:
    """Stripes finer than the target are averaged; a plain bilinear read would keep them black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(square_rgb(Image.fromarray(stripes), 8, "x"), dtype=float)
    assert small.shape == (8, 8, 3)
    assert np.abs(small - 127.5).max() < 10


def test_aspect_is_squeezed_not_cropped() -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, :32] = 255
    small = np.asarray(square_rgb(Image.fromarray(wide), 16, "x"), dtype=int)
    assert (small[:, :6] > 250).all()
    assert (small[:, 10:] < 5).all()


def test_conversion_and_prediction_see_the_same_pixels(tmp_path: Path) -> None:
    """Shards are made and images are predicted through the same function."""
    from data_tools.sharder import Conversion, convert
    from fmad_dist.stream.manifest import load_dataset
    from fmad_dist.stream.reader import SampleReader

    deep = (np.arange(40 * 30).reshape(40, 30) * 50).astype(np.uint16)
    path = tmp_path / "tree" / "part" / "train" / "good" / "deep.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(deep).save(path)
    Image.fromarray(NOISE).save(path.with_name("photo.jpg"))
    out = str(tmp_path / "out")
    convert(Conversion("mvtec", "toy", tmp_path / "tree", out, size=32, num_workers=1))
    dataset = load_dataset(out)
    for row in range(2):
        source = tmp_path / "tree" / dataset.sample(row).sample_id.removeprefix("toy/")
        found = next(source.parent.glob(f"{source.name}.*"))
        expected = np.asarray(square_rgb(open_image(found.read_bytes(), found), 32, found))
        np.testing.assert_array_equal(SampleReader(dataset).image(row), expected)
