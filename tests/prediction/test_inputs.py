"""Which images a source holds, and that none of them leads out of the folder of the results."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmad_dist.base.errors import UserError
from fmad_dist.detector.detector import Detector
from fmad_dist.prediction.inputs import find_images, load
from fmad_dist.prediction.results import Pictures
from fmad_dist.storage import Store
from fmad_dist.view.results import open_results
from tests.prediction.scored import predict, rows_of, save


def write_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    return [save(tmp_path / "made" / f"{seed}.png", seed).read_bytes() for seed in range(4)]


def test_tars_are_read_in_place(tiny_detector: Detector, images: list[bytes], source: Path, tmp_path: Path) -> None:
    """Wherever an image is, its score is the same."""
    longest = "deep/" * 40 + "b.png"  # needs an extended header
    masks = {"a.mask.png": images[3], "a.seg.png": images[3], "a.json": b"{}", "a.cls": b"1"}
    write_tar(tmp_path / "in" / "x.tar", {"a.png": images[0], **masks, longest: images[1]})
    write_tar(tmp_path / "in" / "sub" / "y.tar", {"./a.v2.png": images[2]})
    (tmp_path / "in" / "plain.png").write_bytes(images[3])
    predict(tiny_detector, tmp_path / "in", tmp_path / "out")
    rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert sorted(rows) == ["plain.png", "sub/y.tar/a.v2.png", "x.tar/a.png", f"x.tar/{longest}"]
    assert (tmp_path / "out" / "maps" / "x.tar" / "a.png.png").is_file()
    predict(tiny_detector, source, tmp_path / "folder")
    expected = {row["image"]: row["score"] for row in rows_of(tmp_path / "folder")}
    for number, name in enumerate(("x.tar/a.png", f"x.tar/{longest}", "sub/y.tar/a.v2.png", "plain.png")):
        row = rows[name]
        assert (
            Store(row["url"].rpartition("/")[0]).read_range(
                row["url"].rpartition("/")[2], row["start"], row["start"] + row["num_bytes"]
            )
            == images[number]
        )
        assert row["score"] == pytest.approx(expected[f"{number}.png"], rel=1e-4)


def test_single_tars_and_several_sources(images: list[bytes], source: Path, tmp_path: Path) -> None:
    one = write_tar(tmp_path / "x.tar", {"a.png": images[0]})
    assert [item.name for item in find_images([str(one)], 64)] == ["x.tar/a.png"]
    both = [item.name for item in find_images([str(one), str(source)], 64)]
    assert len(both) == 13
    assert {"x.tar/a.png", "source/0.png", "source/below/deep.JPG"} <= set(both)
    Store("memory://tars").write("z.tar", one.read_bytes())
    (item,) = find_images(["memory://tars/z.tar"], 64)
    assert load(item, 64).pixels is not None
    with pytest.raises(UserError, match=r"a second image is called x\.tar/a\.png"):
        find_images([str(one), str(one)], 64)


def test_converted_datasets_give_all_their_images(tiny_detector: Detector, tiny_url: str, tmp_path: Path) -> None:
    found = find_images([tiny_url], 64)
    assert len(found) == 5 + 7 + 12 + 6
    assert found[0].name == "tiny/bolt/test/good/000"
    assert all(load(item, 64).pixels is not None for item in found)
    with pytest.raises(UserError, match="stores 64 px images and not 96"):
        find_images([tiny_url], 96)


def test_on_object_storage_as_on_a_disk(
    tiny_detector: Detector, images: list[bytes], tmp_path: Path, moto_bucket: str
) -> None:
    tar = write_tar(tmp_path / "in" / "x.tar", {"a.png": images[0], "b.png": images[1]})
    store = Store(f"{moto_bucket}/in")
    store.write("x.tar", tar.read_bytes())
    for folder in (store, Store(tmp_path / "in")):
        folder.write("c.png", images[2])
        folder.write("cut.png", images[3][:99])
    predict(tiny_detector, tmp_path / "in", tmp_path / "out")
    predict(tiny_detector, store.url, f"{moto_bucket}/out")
    local, remote = rows_of(tmp_path / "out"), rows_of(f"{moto_bucket}/out")
    for one, other in zip(local, remote, strict=True):
        assert other["url"] == one["url"].replace(str(tmp_path), moto_bucket)
        assert one | {"url": "", "error": ""} == other | {"url": "", "error": ""}
    assert set(Store(tmp_path / "out").list()) == set(Store(f"{moto_bucket}/out").list())
    viewed = open_results(f"{moto_bucket}/out")
    assert [viewed.picture(row) for row in (0, 3)] == [images[2], images[1]]
    np.testing.assert_array_equal(viewed.heat(3), open_results(str(tmp_path / "out")).heat(3))
    predict(tiny_detector, store.url, f"{moto_bucket}/out", overwrite=True, pictures=Pictures.NONE)
    assert Store(f"{moto_bucket}/out").list() == ["scores.csv", "scores.parquet", "stamp.json"]


@pytest.mark.parametrize("name", ["../../x.png", "/tmp/x.png", "a/../../../x.png", "./../x.png", "a/../b.png"])
def test_names_that_lead_out_are_refused(
    tiny_detector: Detector, images: list[bytes], tmp_path: Path, name: str
) -> None:
    tar = write_tar(tmp_path / "in" / "x.tar", {"a.png": images[0], name: images[1]})
    with pytest.raises(UserError, match=r"would lie outside --out; nothing was scored") as caught:
        predict(tiny_detector, tmp_path / "in", tmp_path / "down" / "out")
    assert str(tar) in str(caught.value)
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("x.tar", lambda data: data[:700], "not a plain and complete tar"),
        ("x.tar", lambda data: data[: len(data) // 2 - 100], "not a plain and complete tar"),
        ("x.tar", lambda data: data[:-1536] + b"x" * 1536, "not a plain and complete tar"),
        ("x.tar", lambda data: b"no tar at all" * 100, "not a plain and complete tar"),
        ("x.tar.gz", lambda data: data, "unpack it to .tar"),
    ],
)
def test_damaged_tars_are_named(images: list[bytes], tmp_path: Path, name: str, damage, said: str) -> None:
    tar = write_tar(tmp_path / "in" / name, {"a.png": images[0], "b.png": images[1]})
    data = damage(tar.read_bytes().rstrip(b"\0") + bytes(1536) if name == "x.tar" else tar.read_bytes())
    tar.write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        find_images([str(tmp_path / "in")], 64)
    assert str(tar) in str(caught.value)


def test_links_are_not_followed(images: list[bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", {"a.png": images[0]}, link="b.png")
    with pytest.raises(UserError, match=r"b\.png is a link"):
        find_images([str(tmp_path / "in")], 64)


def test_an_image_that_went_away_is_its_own_error(source: Path) -> None:
    found = find_images([str(source)], 64)
    (source / "0.png").unlink()
    gone = load(found[0], 64)
    assert gone.pixels is None
    assert f"{source}/0.png: not found" in gone.error


def test_folders_as_people_have_them(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, kind in (("a.png", "PNG"), ("b.webp", "WEBP"), ("c.gif", "GIF"), (".thumbs/a.png", "PNG")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name, format=kind)
    (folder / "._a.png").write_bytes(b"of a Mac")
    (folder / "d.heic").write_bytes(b"of a telephone")
    (folder / "linked").symlink_to(source)
    (folder / "circle").symlink_to(folder)
    left_out: list[str] = []
    found = [item.name for item in find_images([str(folder)], 64, left_out)]
    linked = [f"linked/{item.name}" for item in find_images([str(source)], 64)]
    assert found == ["a.png", "b.webp", "c.gif", *sorted(linked)]
    assert sorted(left_out) == ["._a.png", ".thumbs/a.png", "d.heic", "linked/notes.txt"]
    assert [item.name for item in find_images([str(folder / "a.png")], 64)] == ["a.png"]


def test_a_name_that_is_no_utf8_is_told(source: Path) -> None:
    with open(os.fsencode(source) + b"/caf\xe9.png", "wb") as file:
        file.write((source / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"caf\\udce9\.png: the bytes of this name are no UTF-8"):
        find_images([str(source)], 64)


def test_the_longest_name_of_a_picture_is_scored_and_found_again(
    tiny_detector: Detector, images: list[bytes], tmp_path: Path
) -> None:
    name = "é" * 125 + ".png"  # 254 bytes, so that its picture's name would be too long
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(images[0])
    predict(tiny_detector, tmp_path / "in", tmp_path / "out")
    (picture,) = (tmp_path / "out/maps").iterdir()
    assert len(picture.name.encode()) <= 255
    results = open_results(str(tmp_path / "out"))
    assert results.columns.names == [name]
    assert results.heat(0).ndim == 2
