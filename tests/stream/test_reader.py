"""From shards to verified images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.reader import SampleReader, decode_rgb_png
from tests.stream.damage import flip, shard_of

SIDE = 64


def test_images_are_those_of_the_source(tiny_url: str) -> None:
    dataset = load_dataset(tiny_url)
    reader = SampleReader(dataset)
    for index in (0, len(dataset) - 1):
        sample_id = dataset.sample_ids[index].removeprefix("tiny/")
        source = np.asarray(Image.open(Path(f"{tiny_url}-tree") / f"{sample_id}.png"))
        np.testing.assert_array_equal(reader.image(index), source)


def test_masks_are_read_for_anomalous_images_only(tiny_url: str) -> None:
    dataset = load_dataset(tiny_url)
    for index in dataset.indices("test"):
        masks = SampleReader(dataset).masks(int(index))
        assert [int((mask != 0).sum()) for mask in masks] == ([4 * 6] if dataset.labels[index] else [])


@pytest.mark.parametrize("where", [0, 100, -1], ids=["first byte", "inside", "last byte"])
def test_a_flipped_bit_is_noticed(own_copy: Path, where: int) -> None:
    shard, offset, size = shard_of(own_copy, 3)
    flip(shard, offset + where % size)
    dataset = load_dataset(str(own_copy))
    with pytest.raises(UserError, match="truncated or changed") as caught:
        SampleReader(dataset).image(3)
    assert str(shard) in str(caught.value)
    assert dataset.sample_ids[3] in str(caught.value)
    assert SampleReader(dataset).image(4).shape == (SIDE, SIDE, 3)  # its neighbours stay readable


def test_a_truncated_shard_is_noticed(own_copy: Path) -> None:
    shard, offset, size = shard_of(own_copy, 3)
    shard.write_bytes(shard.read_bytes()[: offset + size - 1])
    dataset = load_dataset(str(own_copy))
    with pytest.raises(UserError) as caught:
        SampleReader(dataset).image(3)
    assert str(shard) in str(caught.value)
    assert dataset.sample_ids[3] in str(caught.value)


def test_a_damaged_mask_is_noticed(own_copy: Path) -> None:
    dataset = load_dataset(str(own_copy))
    index = int(np.flatnonzero(dataset.labels)[0])
    sample = dataset.sample(index)
    flip(own_copy / sample.shard, sample.masks[0].offset + 60)
    with pytest.raises(UserError, match=sample.sample_id):
        SampleReader(dataset).masks(index)


def test_a_missing_shard_is_named(own_copy: Path) -> None:
    shard, _, _ = shard_of(own_copy, 3)
    shard.unlink()
    with pytest.raises(UserError, match="not found") as caught:
        SampleReader(load_dataset(str(own_copy))).image(3)
    assert str(shard) in str(caught.value)


def test_shards_are_read_from_any_filesystem(tiny_url: str) -> None:
    remote = Store("memory://reading/tiny")
    for name in Store(tiny_url).list():
        remote.write(name, Store(tiny_url).read(name))
    here, there = SampleReader(load_dataset(tiny_url)), SampleReader(load_dataset(remote.url))
    np.testing.assert_array_equal(here.image(5), there.image(5))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_stored_picture_may_not_have_more_pixels_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, format="PNG")
    assert decode_rgb_png(buffer.getvalue()).shape == (20, 30, 3)
    monkeypatch.setenv("FMAD_MAX_PIXELS", "599")
    with pytest.raises(UserError, match="has more than 0 megapixels"):
        decode_rgb_png(buffer.getvalue())
