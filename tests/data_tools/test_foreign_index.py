"""Tars that were written by others become datasets in place."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from data_tools.conversion.convert import convert
from data_tools.foreign_index import Defaults, index_tars
from data_tools.lint import lint
from data_tools.remarks import Remarks
from fmad_dist.base.errors import UserError
from fmad_dist.cli.data import app
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.foreign_tars import READ_ATTEMPTS, TarStream, split_of_tar
from fmad_dist.stream.mixture import Mixture, split_normals
from fmad_dist.stream.reader import SampleReader
from tests.data_tools.small_trees import noise, spot


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, *samples: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars in webdataset's own way: classes by folder, by `cls`, and by `json`; sizes and types differ."""
    folder = tmp_path / "tars"
    write(
        folder / "a" / "train-000000.tar",
        *({"__key__": f"bolt/{n:03d}", "png": encoded(noise(n, (50, 40, 3)))} for n in range(4)),
        *({"__key__": f"x{n}", "jpg": encoded(noise(9 + n), "JPEG"), "cls": b"nut"} for n in range(3)),
    )
    facts = {"class": "bolt", "split": "test", "label": "anomaly", "defect_type": "hole", "group": "g1", "view": "top"}
    write(
        folder / "b" / "shard.test.tar",
        {
            "__key__": "t/1",
            "jpeg": encoded(noise(30), "JPEG"),
            "mask.png": encoded(spot()),
            "json": json.dumps(facts).encode(),
        },
        {"__key__": "bolt/good", "bmp": encoded(noise(31), "BMP")},
        {"__key__": "no-image", "txt": b"nothing of ours"},
    )
    return folder


def test_everything_is_found(tars: Path) -> None:
    before = {path: path.read_bytes() for path in tars.rglob("*.tar")}
    manifest, written = index_tars(str(tars), Defaults("toy", licence="CC0"))
    assert written
    assert {path: path.read_bytes() for path in tars.rglob("*.tar")} == before
    dataset = load_dataset(str(tars))
    assert list(dataset.sample_ids) == [
        "toy/bolt/test/good", "toy/bolt/test/t/1",
        "toy/bolt/train/000", "toy/bolt/train/001", "toy/bolt/train/002", "toy/bolt/train/003",
        "toy/nut/train/x0", "toy/nut/train/x1", "toy/nut/train/x2",
    ]  # fmt: skip
    assert manifest.classes["bolt"].model_dump() == {
        "train": 4, "val": 0, "test_normal": 1, "test_anomalous": 1, "defects": {"hole": 1},
    }  # fmt: skip
    defect = dataset.sample(1)
    assert (defect.group, defect.view, len(defect.original_masks)) == ("g1", "top", 1)
    assert lint(str(tars)).findings == ()
    reader = SampleReader(dataset, 40)
    np.testing.assert_array_equal(reader.masks(1)[0], spot())
    np.testing.assert_array_equal(reader.image(0), noise(31))
    stored = Image.fromarray(noise(0, (50, 40, 3))).resize((40, 40), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(reader.image(2), np.asarray(stored))
    split = split_normals(Mixture.load([str(tars)]), 0.3)
    assert (len(split.train), len(split.held_out)) == (5, 2)


def test_numbers_as_classes_and_empty_masks(tmp_path: Path) -> None:
    empty = np.zeros_like(spot())
    write(
        tmp_path / "x.tar",
        {"__key__": "in/a", "png": encoded(noise(1)), "json": b'{"class": 0}', "mask.png": encoded(empty)},
        {"__key__": "in/b", "png": encoded(noise(2)), "json": b'{"class": 0, "split": "validation"}'},
        {
            "__key__": "in/c",
            "png": encoded(noise(3)),
            "json": b'{"class": 0, "split": "test"}',
            "mask.0.png": encoded(empty),
            "mask.1.png": encoded(spot()),
            "seg.png": encoded(spot()),
        },
    )
    index_tars(str(tmp_path), Defaults("toy"))
    dataset = load_dataset(str(tmp_path))
    assert list(dataset.sample_ids) == ["toy/0/test/in/c", "toy/0/train/in/a", "toy/0/val/in/b"]
    assert [dataset.sample(row).label for row in range(3)] == [1, 0, 0]
    assert [len(dataset.sample(row).original_masks) for row in range(3)] == [2, 0, 0]
    assert lint(str(tmp_path)).num_errors == 0


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("shards/validation_03.tar", "val"),
        ("train_test_split/val.tar", "val"),
        ("contest-latest.tar", None),
        ("Test/part-1.tar", "test"),
    ],
)
def test_split_of_a_tar_by_its_name(name: str, split: str | None) -> None:
    assert split_of_tar(name) == split


def test_a_second_run_writes_nothing_until_a_tar_changes(tars: Path) -> None:
    first, _ = index_tars(str(tars), Defaults("toy"))
    times = {path: path.stat().st_mtime_ns for path in tars.rglob("*") if path.is_file()}
    again, written = index_tars(str(tars), Defaults("toy"))
    assert (again, written) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in tars.rglob("*") if path.is_file()} == times
    write(tars / "a" / "train-000001.tar", {"__key__": "bolt/new", "png": encoded(noise(77))})
    more, written = index_tars(str(tars), Defaults("toy"))
    assert written
    assert more.index.num_samples == first.index.num_samples + 1
    assert index_tars(str(tars), Defaults("toy", class_name="other"))[1], "other options index again"


def test_tars_of_gnu_tar_and_long_names(tmp_path: Path) -> None:
    name = "a-very-long-folder-name-" * 6
    folder = tmp_path / "images" / name
    folder.mkdir(parents=True)
    Image.fromarray(noise(1)).save(folder / "one.png")
    (tmp_path / "tars").mkdir()
    for kind in ("gnu", "pax", "ustar"):
        command = [
            "tar",
            f"--format={kind}",
            "-cf",
            str(tmp_path / "tars" / f"{kind}.tar"),
            "-C",
            str(tmp_path / "images"),
        ]
        done = subprocess.run([*command, f"./{name}/one.png"], check=False, capture_output=True)
        assert done.returncode == 0 or kind == "ustar"
        if done.returncode:
            (tmp_path / "tars" / f"{kind}.tar").unlink()
            continue
        out = tmp_path / kind
        out.mkdir()
        shutil.copy(tmp_path / "tars" / f"{kind}.tar", out / "t.tar")
        index_tars(str(out), Defaults("toy"))
        np.testing.assert_array_equal(SampleReader(load_dataset(str(out)), 40).image(0), noise(1))


def test_our_own_shards_without_their_manifest(options, tmp_path: Path) -> None:
    convert(options())
    ours = load_dataset(options().out)
    shutil.copytree(Path(options().out) / "shards", tmp_path / "bare")
    index_tars(str(tmp_path / "bare"), Defaults("tiny"))
    found = load_dataset(str(tmp_path / "bare"))
    assert found.manifest.classes == ours.manifest.classes
    assert sorted(s.sha256 for s in images(found)) == sorted(s.sha256 for s in images(ours))
    assert lint(str(tmp_path / "bare")).num_errors == 0
    with pytest.raises(UserError, match="was converted by fmad"):
        index_tars(options().out, Defaults("tiny"))


def images(dataset: Any) -> list[Any]:
    return [sample.image or sample.original for sample in map(dataset.sample, range(len(dataset)))]


def test_tars_on_object_storage(tars: Path, moto_bucket: str) -> None:
    store = Store(f"{moto_bucket}/tars")
    for path in tars.rglob("*.tar"):
        store.upload(path, str(path.relative_to(tars)))
    manifest, _ = index_tars(store.url, Defaults("toy"))
    local, _ = index_tars(str(tars), Defaults("toy"))
    assert manifest == local
    assert lint(store.url).findings == ()
    reader, here = SampleReader(load_dataset(store.url), 24), SampleReader(load_dataset(str(tars)), 24)
    for row in range(9):
        np.testing.assert_array_equal(reader.image(row), here.image(row))


class Failing:
    """A file whose connection breaks whenever it was read twice."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.reads = 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        if self.reads > 2:
            raise ConnectionResetError("cut")
        return bytes(self.file.read(size))

    def seek(self, position: int) -> None:
        self.file.seek(position)


def test_a_tar_is_read_on_after_an_outage(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name = Store(tars), "a/train-000000.tar"
    plain = store.open
    monkeypatch.setattr(store, "open", lambda name: Failing(plain(name)))
    stream = TarStream(store, name)
    data = b""
    while block := stream.read(5000):
        data += block
    assert data == (tars / name).read_bytes()
    monkeypatch.setattr(Failing, "read", lambda self, size: (_ for _ in ()).throw(ConnectionResetError("gone")))
    opened: list[str] = []
    monkeypatch.setattr(store, "open", lambda name: opened.append(name) or Failing(plain(name)))
    with pytest.raises(UserError, match=r"train-000000\.tar: the storage does not answer \(gone\)"):
        TarStream(store, name).read(10)
    assert len(opened) == READ_ATTEMPTS


def add_member(folder: Path, name: str, data: bytes) -> None:
    with tarfile.open(folder / "a" / "train-000009.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def truncate(folder: Path) -> None:
    path = folder / "a" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])


def rewrite(folder: Path, change: Any) -> None:
    """Change the first tar, given its bytes and where its third member begins."""
    path = folder / "a" / "train-000000.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[2].offset
    path.write_bytes(change(path.read_bytes(), offset))


def add(name: str, data: bytes) -> Any:
    return lambda folder: add_member(folder, name, data)


BAD: dict[str, tuple[Any, str]] = {
    "truncated": (truncate, r"a/train-000000\.tar: not a plain and complete tar \("),
    "cut between members": (
        lambda folder: rewrite(folder, lambda data, offset: data[:offset]),
        r"a/train-000000\.tar: .* cut or damaged at byte",
    ),
    "damaged header": (
        lambda folder: rewrite(folder, lambda data, offset: data[:offset] + b"?" * 512 + data[offset + 512 :]),
        r"a/train-000000\.tar: .* cut or damaged at byte",
    ),
    "joined": (
        lambda folder: rewrite(folder, lambda data, offset: data + data),
        r"a/train-000000\.tar: .* cut or damaged at byte",
    ),
    "contradiction": (
        lambda folder: write(
            folder / "c.tar",
            {"__key__": "k", "png": encoded(noise(1)), "mask.png": encoded(spot()), "json": b'{"label": 0}'},
        ),
        r"c\.tar: k is said to be normal, but its mask marks a defect",
    ),
    "mask no image": (add("q.mask.png", b"text"), r"q\.mask\.png: cannot be decoded"),
    "compressed": (lambda folder: (folder / "x.tar.gz").write_bytes(b""), r"x\.tar\.gz: a compressed tar"),
    "no image": (add("bolt/9.png", b"text"), r"train-000009\.tar bolt/9\.png: cannot be decoded"),
    "double": (add("bolt/000.png", encoded(noise(1))), "two samples are called toy/bolt/train/000"),
    "mask alone": (add("q.mask.png", encoded(spot())), "q has a mask but no image"),
    "json": (add("q.json", b"{"), r"q\.json: not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tars(tars: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(tars)
    with pytest.raises(UserError, match=message) as caught:
        index_tars(str(tars), Defaults("toy"))
    assert "\n" not in str(caught.value)
    assert not (tars / "manifest.json").exists()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"png": encoded(noise(1)), "jpg": encoded(noise(1), "JPEG")}, "has two images"),
        ({"png": encoded(noise(1)), "json": b'{"label": 1, "split": "train"}'}, "anomalous but in train"),
        ({"png": encoded(noise(1)), "json": b'{"label": "odd"}'}, "label 'odd'"),
        ({"png": encoded(noise(1)), "json": b'{"split": "dev"}'}, "split 'dev'"),
        ({"txt": b"only text"}, "hold no images"),
    ],
)
def test_bad_samples(tmp_path: Path, sample: dict[str, bytes], message: str) -> None:
    write(tmp_path / "t" / "x.tar", {"__key__": "k", **sample})
    with pytest.raises(UserError, match=message):
        index_tars(str(tmp_path / "t"), Defaults("toy"))
    with pytest.raises(UserError, match=r"no \.tar files"):
        index_tars(str(tmp_path / "nothing"), Defaults("toy"))


def test_command(tars: Path) -> None:
    run = CliRunner().invoke
    arguments = ["index", "--source", str(tars), "--dataset", "toy", "--licence", "CC0"]
    assert "indexed 9 images of 2 classes in 2 tars" in run(app, arguments).output
    assert "only their sizes were compared" in run(app, arguments).output
    assert run(app, ["lint", str(tars)]).exit_code == 0


def test_nothing_that_is_left_out_goes_uncounted(tmp_path: Path) -> None:
    members = {"cam1.5.png": noise(1), "img.v2.png": noise(2), "a.png": noise(3), "b.webp": noise(4)}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        files = {name: encoded(pixels, "WEBP" if name.endswith("webp") else "PNG") for name, pixels in members.items()}
        for name, data in (files | {"a.xyz": b"1", "notes.json": b"{}"}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    remarks = Remarks()
    index_tars(str(tmp_path), Defaults("toy"), remarks=remarks)
    assert list(load_dataset(str(tmp_path)).sample_ids) == ["toy/all/train/a", "toy/all/train/b"]
    assert remarks.counts == {"dotted": 2, "other files": 1, "no image": 1}
    assert "cam1.5.png" in "".join(remarks.lines())


@pytest.mark.parametrize("name", ["b_mask", "b-gt", "masks/b", "Ground_Truth/b"])
def test_names_that_look_like_masks_are_no_normal_pictures(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x.tar", {"__key__": "b", "png": encoded(noise(1))}, {"__key__": name, "png": encoded(spot())})
    with pytest.raises(UserError, match=rf"x\.tar: {name}\.png looks like the mask of b; .*b\.mask\.png"):
        index_tars(str(tmp_path), Defaults("toy"))


def test_masks_of_another_size_are_all_told(tmp_path: Path) -> None:
    bad = [{"__key__": f"{n}", "png": encoded(noise(n)), "mask.png": encoded(spot(20, 30))} for n in range(3)]
    write(tmp_path / "test.tar", *bad)
    with pytest.raises(UserError, match=r"^3 problems:\n.*0\.mask\.png is 30x20 but its image is 40x40"):
        index_tars(str(tmp_path), Defaults("toy"))


@pytest.mark.parametrize("name", [".", ".."])
def test_a_class_is_no_folder_above(tmp_path: Path, name: str) -> None:
    facts = json.dumps({"class": name}).encode()
    write(tmp_path / "x.tar", {"__key__": "b", "png": encoded(noise(1)), "json": facts})
    with pytest.raises(UserError, match=f"the class of b is '{name}'"):
        index_tars(str(tmp_path), Defaults("toy"))
