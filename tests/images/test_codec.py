import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from fmad_dist.base.errors import UserError
from fmad_dist.images.codec import image_size, level_png, open_image, square_rgb, to_rgb, wastes_depth


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


def empty_png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A header and nothing that could fill the pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, [*chunks, (b"IEND", b"")]))


def chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest has filters of its own
@pytest.mark.parametrize("size", [(12000, 12000), (20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_bomb_is_refused_by_its_header(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("pixels were allocated"))
    for look in (open_image, image_size):
        with pytest.raises(UserError, match=r"^huge\.png: has more than 134 megapixels.*FMAD_MAX_PIXELS"):
            look(empty_png(*size), "huge.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(NOISE))
    monkeypatch.setenv("FMAD_MAX_PIXELS", "600")
    assert open_image(data, "x").size == (30, 20)
    for limit in ("599", "250"):
        monkeypatch.setenv("FMAD_MAX_PIXELS", limit)
        with pytest.raises(UserError, match=r"^a\.png: has more than 0 megapixels"):
            open_image(data, "a.png")
    monkeypatch.setenv("FMAD_MAX_PIXELS", "300000000")
    assert image_size(empty_png(16000, 16000), "x") == (16000, 16000)
    monkeypatch.setenv("FMAD_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="FMAD_MAX_PIXELS: 'many'"):
        open_image(data, "a.png")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.fromarray(np.roll(NOISE, shift, axis=1)) for shift in (0, 5)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"^belt\.png: is animated; save the frame"):
        open_image(buffer.getvalue(), "belt.png")
    assert open_image(encoded(frames[0], kind), "x").size == (30, 20)


def test_the_first_page_of_a_tiff_counts() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, format="TIFF", save_all=True, append_images=[Image.new("RGB", (3, 3))])
    np.testing.assert_array_equal(rgb_of(open_image(buffer.getvalue(), "x")), NOISE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_pixels_are_as_stored_whatever_the_orientation_tag_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(np.kron(NOISE[:8, :6] // 128 * 255, np.ones((8, 8, 1), np.uint8))).save(
        buffer, format=kind, exif=exif, **options
    )
    image = open_image(buffer.getvalue(), "x")
    assert image.size == image_size(buffer.getvalue(), "x") == (48, 64)
    assert image.format == kind
    difference = rgb_of(image)[4::8, 4::8].astype(int) - NOISE[:8, :6] // 128 * 255
    assert np.abs(difference).max() <= 130 * (kind == "JPEG")  # its colours have half the resolution
    assert np.abs(difference).mean() < 30


def test_16_bits_that_hold_12_are_noticed() -> None:
    grey = np.array([[7, 900, 3000, 4095]], np.uint16)
    colour = tifffile_bytes(np.stack([grey] * 3, axis=-1))
    for data, expected in (
        (encoded(Image.fromarray(grey)), True),
        (encoded(Image.fromarray(grey), "TIFF"), True),
        (colour, True),
        (encoded(Image.fromarray(grey * 16)), False),
        (encoded(Image.fromarray(grey.astype(np.uint8) // 32)), False),
        (encoded(Image.fromarray(grey * 0)), False),
    ):
        image = open_image(data, "x")
        assert wastes_depth(data, image) == expected
        assert not expected or len(np.unique(rgb_of(image))) <= 17


def tifffile_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb")
    return buffer.getvalue()


def test_16_bit_colours_keep_their_high_byte() -> None:
    values = np.array([[[0, 255, 256], [65535, 32768, 511]]], ">u2")
    row = zlib.compress(b"\0" + values.tobytes())
    data = empty_png(2, 1, depth=16).replace(chunk((b"IDAT", zlib.compress(b""))), chunk((b"IDAT", row)))
    assert rgb_of(open_image(data, "x")).tolist() == [[[0, 0, 1], [255, 128, 1]]]


def test_print_colours_are_converted() -> None:
    inks = Image.merge("CMYK", [Image.new("L", (16, 16), ink) for ink in (0, 255, 255, 0)])
    assert np.abs(rgb_of(open_image(encoded(inks, "JPEG"), "x")).astype(int) - [255, 0, 0]).max() <= 3


def test_pixels_are_taken_as_stored() -> None:
    """Masks are drawn on the stored grid."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(NOISE).save(buffer, format="PNG", exif=exif)
    np.testing.assert_array_equal(rgb_of(open_image(buffer.getvalue(), "x")), NOISE)


def test_what_has_no_way_to_rgb_is_refused() -> None:
    with pytest.raises(UserError, match=r"grey\.tif: cannot be decoded.*La"):
        to_rgb(Image.new("La", (4, 4)), "grey.tif")  # premultiplied alpha


def test_formats_that_run_programs_are_unknown() -> None:
    with pytest.raises(UserError, match="cannot be decoded"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "x.png")


def test_nothing_is_said_on_the_terminal(tmp_path: Path) -> None:
    """Not even about sizes that Pillow would warn of, or damaged metadata."""
    (tmp_path / "0").write_bytes(empty_png(12000, 12000))
    (tmp_path / "1").write_bytes(empty_png(9600, 9600))
    (tmp_path / "2").write_bytes(encoded(Image.fromarray(NOISE), "TIFF")[:-40])
    script = (
        "import sys, pathlib\nfrom fmad_dist.images.codec import open_image\nfor name in sys.argv[1:]:\n"
        "    try: open_image(pathlib.Path(name).read_bytes(), name)\n    except ValueError as error: print(error)\n"
    )
    names = [str(tmp_path / name) for name in "012"]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


def test_levels_become_16_bit_grey() -> None:
    levels = np.array([[0.0, 0.25, 0.5, 1.0, np.nan]])
    assert np.asarray(Image.open(io.BytesIO(level_png(levels)))).tolist() == [[0, 16384, 32768, 65535, 0]]


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
    from data_tools.conversion.convert import Conversion, convert
    from fmad_dist.stream.dataset import load_dataset
    from fmad_dist.stream.reader import SampleReader

    deep = (np.arange(40 * 30).reshape(40, 30) * 50).astype(np.uint16)
    path = tmp_path / "tree" / "part" / "train" / "good" / "deep.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(deep).save(path)
    Image.fromarray(NOISE).save(path.with_name("photo.jpg"))
    out = str(tmp_path / "out")
    convert(Conversion(layout="mvtec", dataset="toy", source=tmp_path / "tree", out=out, size=32, num_workers=1))
    dataset = load_dataset(out)
    for row in range(2):
        source = tmp_path / "tree" / dataset.sample(row).sample_id.removeprefix("toy/")
        found = next(source.parent.glob(f"{source.name}.*"))
        expected = np.asarray(square_rgb(open_image(found.read_bytes(), found), 32, found))
        np.testing.assert_array_equal(SampleReader(dataset).image(row), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_common_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode), "image.png").mode == "RGB"
