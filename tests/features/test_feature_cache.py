import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fmad_dist.config import FeatureConfig
from fmad_dist.errors import UserError
from fmad_dist.features import cache as cache_module
from fmad_dist.features import prepare as prepare_module
from fmad_dist.features.backbones import Backbone, FeatureSpec
from fmad_dist.features.cache import (
    INFO_NAME,
    CachedSource,
    FeatureCache,
    cache_key,
    compute_shards,
    open_cache,
    seal_cache,
)
from fmad_dist.features.prepare import prepare_features
from fmad_dist.stream.dataset import Dataset, load_dataset
from fmad_dist.stream.mixture import Mixture, TrainSplit, split_normals
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sources import ImageSource, SampleSource
from fmad_dist.world import World

CPU = torch.device("cpu")
WEIGHTS = "w" * 64
SIDE = 64


@pytest.fixture(scope="module")
def dataset(tiny_mixture: Mixture) -> Dataset:
    return tiny_mixture.datasets[0]


def build(url: str, dataset: Dataset, backbone: Backbone, size: int = 1) -> FeatureCache:
    """What `size` processes do, one after the other."""
    parts = [compute_shards(url, dataset, backbone, WEIGHTS, World(rank, size), CPU) for rank in range(size)]
    return seal_cache(url, dataset, backbone, WEIGHTS, [part for rank in parts for part in rank])


@dataclass
class Images:
    """What preparation needs to know about the images of a run."""

    mixture: Mixture
    split: TrainSplit
    images: SampleSource


def images_of(mixture: Mixture, rows: np.ndarray) -> Images:
    return Images(mixture, TrainSplit(rows, rows[:0]), ImageSource(mixture, SIDE))


def record(cache: FeatureCache, number: int) -> torch.Tensor:
    found = cache.decode(number, cache.fetch([number])[0], "some sample")
    if isinstance(found, BadSample):
        raise found
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, backbone: Backbone) -> FeatureCache:
    """A cache of one process. Read only."""
    return build(str(tmp_path_factory.mktemp("cache")), dataset, backbone)


@pytest.fixture
def own_cache(tmp_path: Path, dataset: Dataset, backbone: Backbone) -> tuple[str, FeatureCache]:
    """A cache that a test may damage, and its URL."""
    return str(tmp_path), build(str(tmp_path), dataset, backbone)


def test_a_cache_holds_the_backbones_features(built: FeatureCache, tiny_mixture: Mixture, backbone: Backbone) -> None:
    images, source = ImageSource(tiny_mixture, SIDE), CachedSource(tiny_mixture, {"tiny": built})
    for row in tiny_mixture.rows("train"):
        expected = backbone(images.read(int(row))[None])[0]
        assert torch.equal(source.read(int(row)), expected)
    assert source.read(int(row)).dtype == torch.float16


@pytest.mark.parametrize("size", [2, 3, 30])  # 30: some processes have no image at all
def test_the_number_of_processes_changes_no_bit(
    tmp_path: Path,
    built: FeatureCache,
    dataset: Dataset,
    backbone: Backbone,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_RECORDS", 5)
    other = build(str(tmp_path), dataset, backbone, size)
    assert len(other.info.shards) >= 5
    assert other.info.num_records == built.info.num_records == 24
    assert other.info.record_sha256 == built.info.record_sha256
    assert other.info.moments_sha256 == built.info.moments_sha256
    assert other.store.read(other.info.moments) == built.store.read(built.info.moments)
    for number in range(24):
        assert torch.equal(record(other, number), record(built, number))


def test_building_again_changes_nothing(
    own_cache: tuple[str, FeatureCache], dataset: Dataset, backbone: Backbone
) -> None:
    url, _ = own_cache
    before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
    build(url, dataset, backbone)
    assert {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()} == before


def test_a_sealed_cache_is_found(built: FeatureCache, dataset: Dataset, backbone: Backbone) -> None:
    url = built.store.url.rsplit("/", 1)[0]
    found = open_cache(url, dataset, backbone, WEIGHTS)
    assert found is not None
    assert found.info == built.info


def test_a_cache_without_its_last_file_is_none(
    own_cache: tuple[str, FeatureCache], dataset: Dataset, backbone: Backbone
) -> None:
    url, cache = own_cache
    cache.store.remove(INFO_NAME)
    assert open_cache(url, dataset, backbone, WEIGHTS) is None
    assert open_cache(f"{url}/nothing", dataset, backbone, WEIGHTS) is None


def test_everything_that_changes_features_changes_the_key(dataset: Dataset, backbone: Backbone, own_copy: Path) -> None:
    base = FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, SIDE)
    specs = [
        base,
        FeatureSpec("tf_efficientnet_lite1", (1, 2), 4, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 3), 4, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 2), 8, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, 128),
    ]
    keys = [cache_key(dataset, Backbone(spec), WEIGHTS) for spec in specs]
    keys.append(cache_key(dataset, backbone, "other weights"))
    keys.append(cache_key(dataset, Backbone(base, chunk=64), WEIGHTS))  # convolutions round by batch size
    edited = dataset.manifest.model_copy(update={"licence": "other"}).sealed()
    keys.append(cache_key(Dataset(dataset.url, edited, dataset.table), backbone, WEIGHTS))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    assert cache_key(dataset, backbone, WEIGHTS) == keys[0]


def test_other_weights_do_not_find_the_cache(built: FeatureCache, dataset: Dataset, backbone: Backbone) -> None:
    url = built.store.url.rsplit("/", 1)[0]
    assert open_cache(url, dataset, backbone, "other weights") is None


def damage(cache: FeatureCache, name: str, position: int) -> None:
    path = Path(cache.store.path(name))
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_damaged_record_is_refused(own_cache: tuple[str, FeatureCache]) -> None:
    _, cache = own_cache
    size = int(np.prod(cache.info.shape)) * 2
    damage(cache, cache.info.shards[0].name, 3 * size + 7)
    with pytest.raises(UserError, match="record 3, which does not match") as caught:
        record(cache, 3)
    assert cache.info.shards[0].name in str(caught.value)
    assert cache.store.url in str(caught.value)
    record(cache, 2), record(cache, 4)


def test_a_truncated_or_missing_shard_is_refused(own_cache: tuple[str, FeatureCache]) -> None:
    _, cache = own_cache
    path = Path(cache.store.path(cache.info.shards[0].name))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="record 23"):
        record(cache, 23)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        record(cache, 0)


def test_damaged_moments_are_refused(own_cache: tuple[str, FeatureCache]) -> None:
    _, cache = own_cache
    damage(cache, cache.info.moments, -3)
    with pytest.raises(UserError, match=cache.info.moments):
        cache.moments()


@pytest.mark.parametrize("content", ["", "{", '{"format": "fmad-features/1"}'])
def test_a_damaged_description_is_refused(
    own_cache: tuple[str, FeatureCache], dataset: Dataset, backbone: Backbone, content: str
) -> None:
    url, cache = own_cache
    cache.store.write(INFO_NAME, content.encode())
    with pytest.raises(UserError, match=r"cache\.json: not readable"):
        open_cache(url, dataset, backbone, WEIGHTS)


def test_moments_come_in_the_order_that_was_asked(built: FeatureCache, tiny_mixture: Mixture) -> None:
    source = CachedSource(tiny_mixture, {"tiny": built})
    rows = tiny_mixture.rows("train")
    found = source.moments(rows[[7, 0, 20]])
    np.testing.assert_array_equal(found, built.moments()[[7, 0, 20]])
    tokens = record(built, 7).double().flatten(1)
    np.testing.assert_allclose(found[0], torch.stack([tokens.sum(1), tokens.square().sum(1)]), rtol=1e-12)


def test_a_damaged_image_has_a_record_that_says_so(own_copy: Path, tmp_path: Path, backbone: Backbone) -> None:
    dataset = load_dataset(str(own_copy))
    row = int(dataset.rows("train")[4])
    sample = dataset.sample(row)
    assert sample.image is not None
    shard = own_copy / sample.shard
    data = bytearray(shard.read_bytes())
    data[sample.image.offset + 40] ^= 1
    shard.write_bytes(data)
    cache = build(str(tmp_path / "cache"), dataset, backbone)
    mixture = Mixture.load([str(own_copy)])
    source = CachedSource(mixture, {"tiny": cache})
    rows = mixture.rows("train")
    found = source.decode(source.fetch(rows.tolist()))
    assert [index for index, item in zip(rows, found, strict=True) if isinstance(item, BadSample)] == [row]
    assert [one.sample_id for one in source.damaged(rows[4:5])] == [sample.sample_id]
    assert np.isnan(source.moments(rows)).any(axis=(1, 2)).nonzero()[0].tolist() == [4]

    config = CONFIG.model_copy(update={"cache": str(tmp_path / "other")})
    fresh = prepare_features(CONFIG, images_of(mixture, rows), World(), CPU, lambda item: [item])
    cached = prepare_features(config, images_of(mixture, rows), World(), CPU, lambda item: [item])
    for prepared in (fresh, cached):
        assert [one.sample_id for one in prepared.bad] == [sample.sample_id]
        assert prepared.rows.tolist() == [index for index in rows.tolist() if index != row]
        assert torch.isfinite(prepared.whitening.std).all()


CONFIG = FeatureConfig(taps=(1, 2), grid=4, image_size=SIDE)


def test_with_or_without_a_cache_the_inputs_are_the_same(tmp_path: Path, tiny_mixture: Mixture) -> None:
    rows = split_normals(tiny_mixture, 0.1).train
    config = CONFIG.model_copy(update={"cache": str(tmp_path)})
    fresh = prepare_features(CONFIG, images_of(tiny_mixture, rows), World(), CPU, lambda item: [item])
    cached = prepare_features(config, images_of(tiny_mixture, rows), World(), CPU, lambda item: [item])
    assert (fresh.cached, cached.cached) == (False, True)
    assert torch.equal(fresh.whitening.mean, cached.whitening.mean)
    assert torch.equal(fresh.whitening.std, cached.whitening.std)
    np.testing.assert_array_equal(fresh.moments, cached.moments)
    row = int(rows[5])
    assert torch.equal(fresh.backbone(fresh.source.read(row)[None])[0], cached.source.read(row))


def test_held_out_images_do_not_shape_the_whitening(tmp_path: Path, tiny_mixture: Mixture) -> None:
    config = CONFIG.model_copy(update={"cache": str(tmp_path)})
    split = split_normals(tiny_mixture, 0.3)
    prepared = prepare_features(config, images_of(tiny_mixture, split.train), World(), CPU, lambda item: [item])
    x = torch.stack([prepared.source.read(int(row)) for row in split.train])
    white = prepared.whitening(x)
    assert white.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert prepared.rows.tolist() == split.train.tolist()


def test_class_means_by_hand(tiny_mixture: Mixture) -> None:
    rows = tiny_mixture.rows("train")
    prepared = prepare_features(CONFIG, images_of(tiny_mixture, rows), World(), CPU, lambda item: [item])
    numbers = tiny_mixture.class_numbers[rows]
    found = prepared.class_means(numbers, 3)
    for number in range(3):
        own = torch.stack([prepared.source.read(int(row)) for row in rows[numbers == number]])
        expected = prepared.whitening(prepared.backbone(own)).mean(dim=(0, 2, 3))
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)


def test_a_sample_of_a_large_dataset_still_has_every_class(
    tiny_mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class without a mean would have the distance NaN to every image, and NaN counts as the smallest."""
    monkeypatch.setattr(prepare_module, "MAX_WHITENING_IMAGES", 2)
    rows = tiny_mixture.rows("train")
    prepared = prepare_features(CONFIG, images_of(tiny_mixture, rows), World(), CPU, lambda item: [item])
    assert len(prepared.rows) < 6
    assert prepared.class_means(tiny_mixture.class_numbers[prepared.rows], 3).isfinite().all()
