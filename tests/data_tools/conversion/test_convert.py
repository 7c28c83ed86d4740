import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.conversion.convert import convert
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import Dataset, Sample, load_dataset
from fmad_dist.stream.manifest import FORMAT
from tests.data_tools.small_trees import SIDE, make_class, noise, save, spot


def stored_pixels(dataset: Dataset, sample_id: str) -> np.ndarray:
    sample = by_id(dataset)[sample_id]
    return decoded(dataset, sample, sample.image.offset, sample.image.size)


def stored_mask(dataset: Dataset, sample_id: str) -> np.ndarray:
    sample = by_id(dataset)[sample_id]
    (span,) = sample.masks
    return decoded(dataset, sample, span.offset, span.size)


def decoded(dataset: Dataset, sample: Sample, offset: int, size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(Store(dataset.url).read_range(sample.shard, offset, offset + size))))


def by_id(dataset: Dataset) -> dict[str, Sample]:
    return {sample_id: dataset.sample(row) for row, sample_id in enumerate(dataset.sample_ids)}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (_, data) in snapshot(folder).items()}


def test_pixels_and_masks_survive(options, tree):
    report = convert(options())
    assert report.written
    dataset = load_dataset(options().out)
    for name in ("bolt", "nut"):
        for path in sorted((tree / name).glob("t*/*/*.png")):
            sample_id = f"tiny/{path.relative_to(tree).with_suffix('').as_posix()}"
            assert np.array_equal(stored_pixels(dataset, sample_id), np.asarray(Image.open(path)))
        assert np.array_equal(stored_mask(dataset, f"tiny/{name}/test/hole/001"), spot())


def test_index_and_manifest_say_what_is_there(options, tree):
    manifest = convert(options()).manifest
    dataset = load_dataset(options().out)
    assert dataset.sample_ids == sorted(dataset.sample_ids)
    assert manifest.classes["bolt"].model_dump() == {
        "train": 3, "val": 0, "test_normal": 2, "test_anomalous": 2, "defects": {"hole": 2},
    }  # fmt: skip
    assert manifest.classes["odd"].defects == {"bent": 1, "speck": 1}
    assert manifest.licence == "licensed under CC0"
    sample = by_id(dataset)["tiny/odd/train/good/name.with.dots"]
    assert (sample.label, sample.defect_type, sample.masks) == (0, "good", ())
    row = dataset.sample_ids.index("tiny/odd/test/speck/000")
    assert dataset.table.column("source_height")[row].as_py() == 200
    assert dataset.table.column("source")[row].as_py() == "odd/test/speck/000.png"
    published = hashlib.sha256((tree / "odd/test/speck/000.png").read_bytes()).hexdigest()
    assert dataset.table.column("source_sha256")[row].as_py() == published


def test_byte_ranges_hold_the_stated_bytes(options):
    convert(options())
    dataset = load_dataset(options().out)
    store = Store(dataset.url)
    for sample in by_id(dataset).values():
        for span in (sample.image, *sample.masks):
            data = store.read_range(sample.shard, span.offset, span.offset + span.size)
            assert hashlib.sha256(data).hexdigest() == span.sha256
            assert data.startswith(b"\x89PNG")


def test_rgb_png_of_the_stored_size_is_kept_verbatim(options, tree):
    convert(options())
    dataset = load_dataset(options().out)
    sample = by_id(dataset)["tiny/bolt/train/good/000"]
    assert sample.image.sha256 == hashlib.sha256((tree / "bolt/train/good/000.png").read_bytes()).hexdigest()


def test_one_pixel_defect_and_black_palette_mask_survive(options):
    report = convert(options())
    assert report.remarks.counts["pooled"] == 1
    dataset = load_dataset(options().out)
    speck = stored_mask(dataset, "tiny/odd/test/speck/000")
    assert np.argwhere(speck == 255).tolist() == [[151 * SIDE // 200, 51 * SIDE // 100]]
    expected = np.maximum(spot(at=(2, 3)), spot(at=(30, 31)))
    assert np.array_equal(stored_mask(dataset, "tiny/odd/test/bent/000"), expected)


def test_sixteen_bit_grey_keeps_its_range(options, tree):
    convert(options(size=50))
    pixels = stored_pixels(load_dataset(options().out), "tiny/odd/train/good/deep")
    assert np.array_equal(pixels[..., 0], noise(3, (50, 50)))


def test_second_run_writes_nothing(options, tmp_path):
    convert(options())
    before = snapshot(tmp_path / "out")
    report = convert(options())
    assert not report.written
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_shard_is_repaired(options, tmp_path, damage):
    manifest = convert(options()).manifest
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / manifest.shards[0].name
    shard.unlink() if damage == "missing" else shard.write_bytes(b"short")
    assert convert(options()).written
    assert contents(tmp_path / "out") == before


def test_a_damaged_manifest_is_repaired(options, tmp_path):
    convert(options())
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{", encoding="utf-8")
    assert convert(options()).written
    assert contents(tmp_path / "out") == before


def test_an_older_format_is_refused_and_converted_again(options, tmp_path):
    convert(options())
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace(FORMAT, "fmad-manifest/1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"format 'fmad-manifest/1' is not .*; convert the dataset again"):
        load_dataset(options().out)
    assert convert(options()).written
    assert contents(tmp_path / "out") == before


def test_changed_source_changes_the_digest_and_keeps_old_shards(options, tree, tmp_path):
    old = convert(options()).manifest
    save(tree / "bolt/train/good/000.png", noise(999))
    new = convert(options()).manifest
    assert new.source_digest != old.source_digest
    assert all((tmp_path / "out" / shard.name).exists() for shard in old.shards)


def test_worker_count_does_not_change_a_byte(options, tmp_path):
    convert(options())
    convert(options(out=str(tmp_path / "two"), num_workers=2))
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


def test_shards_roll_at_their_target_size(options, tmp_path):
    make_class(tmp_path / "large" / "slab", num_train=4)
    for number in range(4):
        save(tmp_path / "large/slab/train/good" / f"{number:03d}.png", noise(number, (500, 500, 3)))
    manifest = convert(options(source=tmp_path / "large", size=500, shard_mb=1)).manifest
    train = [shard for shard in manifest.shards if shard.split == "train"]
    assert [shard.num_samples for shard in train] == [1, 1, 1, 1]
    dataset = load_dataset(options().out)
    assert np.array_equal(stored_pixels(dataset, "tiny/slab/train/good/003"), noise(3, (500, 500, 3)))


def test_memory_url(options):
    out = "memory://convert-test/tiny"
    convert(options(out=out))
    assert not convert(options(out=out)).written
    assert np.array_equal(stored_mask(load_dataset(out), "tiny/nut/test/hole/000"), spot())


def test_plain_webdataset_reads_the_shards(options, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    manifest = convert(options()).manifest
    urls = [str(tmp_path / "out" / shard.name) for shard in manifest.shards]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(samples) == manifest.index.num_samples
    sample = samples["tiny/bolt/test/hole/000"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["mask.png"]))), spot())
    assert json.loads(sample["json"])["defect_type"] == "hole"
    dotted = samples["tiny/odd/train/good/name_with_dots"]
    assert json.loads(dotted["json"])["sample_id"] == "tiny/odd/train/good/name.with.dots"
    assert "mask.png" not in dotted


def test_another_dataset_is_not_overwritten_unless_asked(options):
    convert(options())
    with pytest.raises(UserError, match="holds the dataset 'tiny'"):
        convert(options(dataset="other"))
    assert convert(options(dataset="other", overwrite=True)).manifest.dataset == "other"


SLOW_CONVERSION = """
import sys, time
import data_tools.conversion.convert as conversion
plain = conversion.render_in_order
def slow(images, size, num_workers):
    for number, rendered in enumerate(plain(images, size, num_workers)):
        if number == 15:
            print("half way", flush=True)
            time.sleep(60)
        yield rendered
conversion.render_in_order = slow
if __name__ == "__main__":
    from pathlib import Path
    options = {"layout": "mvtec", "dataset": "tiny", "size": 40, "num_workers": 2}
    conversion.convert(conversion.Conversion(**options, source=Path(sys.argv[1]), out=sys.argv[2]))
"""


def test_killed_conversion_leaves_nothing_that_matters(options, tree, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_CONVERSION, encoding="utf-8")
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(tmp_path / "slow.py"), str(tree), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        children = [int(pid) for pid in children_of(process.pid)]
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    assert list(out.rglob(".tmp-*")), "the test must kill the conversion while it writes"
    report = convert(options())
    assert report.num_leftovers > 0
    undisturbed = tmp_path / "undisturbed"
    convert(options(out=str(undisturbed)))
    assert contents(out) == contents(undisturbed)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "workers outlived their parent"


def children_of(pid: int) -> list[str]:
    """Process ids of all descendants."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return found + [below for child in found for below in children_of(int(child))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "lego"}, "--layout lego"),
        ({"dataset": "a/b"}, "--dataset 'a/b'"),
        ({"size": 0}, "--size 0"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"num_workers": -1}, "--workers -1"),
        ({"rendition": "tiny"}, "--rendition 'tiny'"),
    ],
)
def test_bad_option(options, change, message):
    with pytest.raises(UserError, match=message):
        convert(options(**change))


def test_error_in_a_worker_process_names_the_file(options, tree):
    path = tree / "nut/test/good/001.png"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"nut/test/good/001.png: cannot be decoded"):
        convert(options(num_workers=2))


def test_doubtful_files_are_counted_and_said(options, tree):
    inverted = 255 - spot()
    save(tree / "bolt/ground_truth/hole/000_mask.png", inverted)
    save(tree / "nut/ground_truth/hole/000_mask.png", inverted)
    (tree / "nut/ground_truth/hole/001_mask.png").unlink()
    save(tree / "nut/ground_truth/hole/001_mask.jpg", spot(extent=16))
    save(tree / "odd/train/good/12bit.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    report = convert(options())
    assert report.remarks.counts == {"coverage": 2, "lossy": 1, "shallow": 1, "pooled": 1}
    said = "\n".join(report.remarks.lines())
    assert "warning: 2 masks marking more than half of the picture" in said
    assert "bolt/ground_truth/hole/000_mask.png" in said
    assert "warning: 1 picture of 16 bits without" in said


def test_a_tagged_tiff_and_its_mask_stay_together(options, tree):
    """Orientation 3: viewers turn the photograph upside down, and the mask is drawn on the stored pixels."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[spot() > 0] = 255
    (tree / "bolt/test/hole/000.png").unlink()
    Image.fromarray(picture).save(tree / "bolt/test/hole/000.tif", tiffinfo={274: 3})
    save(tree / "bolt/ground_truth/hole/000_mask.png", spot())
    convert(options())
    dataset = load_dataset(options().out)
    stored = stored_pixels(dataset, "tiny/bolt/test/hole/000")[..., 0] > 127
    assert np.array_equal(stored, stored_mask(dataset, "tiny/bolt/test/hole/000") > 0)
