"""Tars without an index: who reads which, what is held out, and what is said about it."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
import yaml
from PIL import Image as Pillow

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import load_config
from fmad_dist.images.codec import square_rgb
from fmad_dist.storage import Store
from fmad_dist.stream import sequential_source as sequential_module
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sequential_batches import SequentialBatches, sequential_batches
from fmad_dist.stream.sequential_source import Encoded, Image, SequentialSource, survey
from fmad_dist.training.data import GUARANTEES, open_data

NUM_TARS, PER_TAR = 8, 10


def encoded(seed: int, side: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight tars of ten training images each; the first also holds five samples that do not train, and one tar is of
    another split by its name.
    """
    root = tmp_path / "parts-of-b"
    root.mkdir()
    for tar in range(NUM_TARS):
        with webdataset.TarWriter(str(root / f"x-{tar:03d}.tar"), encoder=False) as writer:
            for number in range(PER_TAR):
                writer.write({"__key__": f"{tar}/{number}", "png": encoded(100 * tar + number)})
            if tar == 0:
                writer.write({"__key__": "0/test", "png": encoded(1), "json": b'{"split": "test"}'})
                writer.write({"__key__": "0/odd", "png": encoded(2), "json": b'{"label": "anomaly"}'})
                writer.write({"__key__": "0/note", "txt": b"no image"})
                writer.write({"__key__": "0/marked", "png": encoded(3), "mask.png": mask(255)})
                writer.write({"__key__": "0/val", "png": encoded(4), "json": b'{"split": "validation"}'})
    with webdataset.TarWriter(str(root / "x-test.tar"), encoder=False) as writer:
        writer.write({"__key__": "t/0", "png": encoded(5)})
    return root


def mask(value: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.full((20, 24), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def source(folder: Path, **changes: Any) -> SequentialSource:
    values = {"urls": (str(folder),), "image_size": 16, "holdout": 0.2, "seed": 3, "patience_s": 1.0} | changes
    return SequentialSource(**values)


def ids(found: Any) -> list[str]:
    return [image.sample_id for image in found if isinstance(image, Image | Encoded)]


def everything(own: SequentialSource) -> list[Encoded | BadSample | None]:
    return list(map(own.chosen, own.samples(own.tars())))


def test_images_are_those_of_the_tars(folder: Path) -> None:
    own = source(folder)
    assert own.name == "parts-of-b"
    found = [image for image in everything(own) if isinstance(image, Encoded)]
    assert ids(found) == [f"parts-of-b/all/train/{tar}/{number}" for tar in range(8) for number in range(10)]
    assert everything(own).count(None) == 5
    expected = square_rgb(Pillow.open(io.BytesIO(encoded(703))), 16, "x")
    decoded = own.decoded(found[73])
    assert isinstance(decoded, Image)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(expected))


def test_an_empty_mask_is_no_defect(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar"), encoder=False) as writer:
        writer.write({"__key__": "clean", "png": encoded(1), "mask.png": mask(0)})
        writer.write({"__key__": "said", "png": encoded(2), "mask.png": mask(9), "json": b'{"label": 0}'})
        writer.write({"__key__": "odd", "png": encoded(3), "json": b'{"label": "maybe"}'})
    found = everything(source(tmp_path))
    assert [one.sample_id.rpartition("/")[2] for one in found if one] == ["clean", "said", "odd"]
    assert isinstance(found[2], BadSample)
    assert "label 'maybe' is unknown" in str(found[2])


def test_tars_on_object_storage(folder: Path, moto_bucket: str) -> None:
    store = Store(f"{moto_bucket}/{folder.name}")
    for path in folder.glob("*.tar"):
        store.upload(path, path.name)
    found, local = everything(source(folder, urls=(store.url,))), everything(source(folder))
    assert [one and (one.sample_id, one.data) for one in found] == [one and (one.sample_id, one.data) for one in local]
    with pytest.raises(UserError, match=r"x-008\.tar: not found"):
        everything(source(folder, urls=(f"{store.url}/x-{{007..099}}.tar",)))


def test_patterns_and_single_tars(folder: Path) -> None:
    pattern = source(folder, urls=(f"{folder}/x-{{002..004}}.tar", f"{folder}/x-test.tar"))
    assert [url.rpartition("x-")[2] for url in pattern.tars()] == ["002.tar", "003.tar", "004.tar", "test.tar"]
    assert pattern.name == "parts-of-b"
    with pytest.raises(UserError, match=r"no \.tar files at .*empty"):
        source(folder / "empty").tars()


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 2), (4, 2)])
def test_readers_share_the_tars_of_a_pass(folder: Path, world: int, workers: int) -> None:
    """Every image that trains is read by exactly one reader per pass."""
    own = source(folder)
    trained = {name for name in ids(everything(own)) if not own.is_held_out(name)}
    assert 50 < len(trained) < 80
    orders = []
    for number in (0, 1):
        read: list[str] = []
        for rank in range(world):
            batches = SequentialBatches(source=own, tars=own.tars(), rank=rank, world=world, size=1, start=0)
            for worker in range(workers):
                read += ids(batches.one_pass(number, worker, workers))
        assert sorted(read) == sorted(trained)
        orders.append(read)
    assert orders[0] != orders[1]


def test_another_start_is_another_order(folder: Path) -> None:
    def order(start: int) -> list[str]:
        own = source(folder)
        endless = SequentialBatches(source=own, tars=own.tars(), rank=0, world=1, size=1, start=start)._endless(0, 1)
        return [next(endless).sample_id for _ in range(40)]  # type: ignore[union-attr]

    assert order(0) == order(0)
    assert order(0) != order(7)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_positions_they_are_given(folder: Path, workers: int) -> None:
    positions = [np.arange(start, start + 4) for start in range(0, 40, 4)]
    found = list(sequential_batches(source(folder), iter(positions), rank=0, world=1, start=0, workers=workers))
    assert [batch.positions.tolist() for batch in found] == [chosen.tolist() for chosen in positions]
    assert all(batch.data.shape == (4, 3, 16, 16) and batch.data.dtype == torch.uint8 for batch in found)
    assert not any(source(folder).is_held_out(name) for batch in found for name in batch.sample_ids)


def test_a_cut_tar_and_a_damaged_image_are_told_and_passed_over(folder: Path) -> None:
    with webdataset.TarWriter(str(folder / "x-001.tar"), encoder=False) as writer:
        writer.write({"__key__": "1/broken", "png": b"no png"})
        writer.write({"__key__": "1/fine", "png": encoded(5)})
    path = folder / "x-002.tar"
    path.write_bytes(path.read_bytes()[:5000])
    between = folder / "x-003.tar"
    with tarfile.open(between) as tar:
        between.write_bytes(between.read_bytes()[: tar.getmembers()[4].offset])
    own = source(folder)
    found = [own.decoded(one) if isinstance(one, Encoded) else one for one in everything(own)]
    bad = [one for one in found if isinstance(one, BadSample)]
    assert [one.sample_id.rpartition("/")[2] for one in bad] == ["broken", "x-002.tar", "x-003.tar"]
    assert [one.url[-9:] for one in bad] == ["x-001.tar", "x-002.tar", "x-003.tar"]
    assert not any("object at" in str(one) for one in bad[1:])
    assert "parts-of-b/all/train/1/fine" in ids(found)
    assert sum("/3/" in name for name in ids(found)) == 4, "what came before the cut is read"
    assert "parts-of-b/all/train/7/9" in ids(found), "the tars behind the cut one are read"
    batches = sequential_batches(own, iter([np.arange(4)] * 18), rank=0, world=1, start=0, workers=0)
    told = {one.sample_id for batch in batches for one in batch.bad}
    assert told == {one.sample_id for one in bad}


def test_too_few_tars_or_images(folder: Path) -> None:
    with pytest.raises(UserError, match="8 tars for 12 readers"):
        next(sequential_batches(source(folder), iter([np.arange(4)]), rank=0, world=4, start=0, workers=3))
    with pytest.raises(UserError, match=r"of the first 80 images .* 0 are held out"):
        survey(source(folder, holdout=1e-9))
    with pytest.raises(UserError, match=r"no training image among the first samples .*\(1 are"):
        survey(source(folder, urls=(only_note(folder),)))


def test_the_survey_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def num_found() -> tuple[int, int, int]:
        found = survey(source(folder))
        num_held = sum(source(folder).is_held_out(image.sample_id) for image in found.images)
        return len(found.images), num_held, found.num_left_out

    num_held = num_found()[1]
    assert num_found() == (80, num_held, 5)
    assert 5 < num_held < 30
    with monkeypatch.context() as patch:
        patch.setattr(sequential_module, "SURVEY", 3)
        assert num_found()[:2] == (6, 3)
    with monkeypatch.context() as patch:
        patch.setattr(sequential_module, "SURVEYED", 30)
        assert num_found()[0] == 25
    monkeypatch.setattr(sequential_module, "SURVEY_BYTES", 40 * len(encoded(0)))
    assert num_found()[0] == 41


def only_note(folder: Path) -> str:
    with webdataset.TarWriter(str(folder.parent / "note.tar"), encoder=False) as writer:
        writer.write({"__key__": "note", "txt": b"no image"})
    return str(folder.parent / "note.tar")


def config_of(folder: Path, tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "run.yaml"
    tree = {"data": {"manifests": [str(folder)], "mode": "sequential", "holdout": 0.2}, "features": {"image_size": 32}}
    path.write_text(yaml.safe_dump(tree))
    return load_config(path, overrides)


def test_training_data_says_what_it_does_not_guarantee(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_data(config_of(folder, tmp_path), World())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == GUARANTEES
    assert said[1].startswith("data.mode sequential: 5 of the first samples are anomalous, of another split")
    assert data.mixture.class_names == ["parts-of-b/all"]
    held = {data.mixture.sample_id(int(row)) for row in data.split.held_out}
    assert len(held) + len(data.split.train) == 80
    assert all(map(source(folder).is_held_out, held))
    row = int(data.split.train[3])
    expected = square_rgb(Pillow.open(io.BytesIO(encoded(_seed(data.mixture.sample_id(row))))), 32, "x")
    np.testing.assert_array_equal(data.images.read(row).permute(1, 2, 0).numpy(), np.asarray(expected))
    other = open_data(config_of(folder, tmp_path, "data.holdout=0.3"))
    assert other.digest != data.digest
    assert json.dumps(data.epoch_size) == "null"


def _seed(sample_id: str) -> int:
    tar, number = sample_id.split("/")[-2:]
    return 100 * int(tar) + int(number)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("features.cache=x", "features.cache"),
        ("model.use_labels=true", "model.use_labels"),
        ("data.cache=x", "data.cache"),
        ("data.temperature=2", "data.temperature"),
        ("data.weights={a: 1}", "data.weights"),
        ("data.class_weights={a/b: 1}", "data.class_weights"),
    ],
)
def test_what_needs_an_index_is_refused(folder: Path, tmp_path: Path, override: str, field: str) -> None:
    with pytest.raises(UserError, match=f"{field}: needs an index"):
        open_data(config_of(folder, tmp_path, override))
