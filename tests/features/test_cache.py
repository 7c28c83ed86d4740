"""The feature cache: built by any number of processes, found again, and damaged in every way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.features import cache as cache_module
from fmad_dist.features.backbones import Backbone, FeatureSpec
from fmad_dist.features.cache import DIGEST_BYTES, INFO_NAME, CachedSource, CacheFolder, FeatureCache
from fmad_dist.stream.dataset import Dataset, load_dataset
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample

CPU = torch.device("cpu")
WEIGHTS = "w" * 64
SIDE = 64


@pytest.fixture(scope="module")
def dataset(tiny_mixture: Mixture) -> Dataset:
    return tiny_mixture.datasets[0]


def build(url: str, dataset: Dataset, backbone: Backbone, size: int = 1) -> FeatureCache:
    """What `size` processes do, one after the other."""
    folder, rows = CacheFolder.of(url, dataset, backbone, WEIGHTS), dataset.indices("train")
    images = ImageSource(Mixture((dataset,), np.array([0, len(dataset)])), SIDE)
    shards = [shard for rank in range(size) for shard in folder.compute(images, rows, backbone, World(rank, size))]
    return folder.seal([found.shard for found in shards])


def opened(url: str, dataset: Dataset, backbone: Backbone, weights: str = WEIGHTS) -> FeatureCache | None:
    return CacheFolder.of(url, dataset, backbone, weights).open()


def damage_an_image(folder: Path) -> tuple[int, str]:
    """Flip a bit of the fifth training image of a converted dataset; its row and sample id."""
    dataset = load_dataset(str(folder))
    row = int(dataset.indices("train")[4])
    sample = dataset.sample(row)
    assert sample.image is not None
    shard = folder / sample.shard
    data = bytearray(shard.read_bytes())
    data[sample.image.offset + 40] ^= 1
    shard.write_bytes(data)
    return row, sample.sample_id


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
    assert other.fetch(range(24)) == built.fetch(range(24))
    np.testing.assert_array_equal(other.moments(np.arange(24)), built.moments(np.arange(24)))
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
    found = opened(url, dataset, backbone)
    assert found is not None
    assert found.info == built.info


def test_a_cache_without_its_last_file_is_none(
    own_cache: tuple[str, FeatureCache], dataset: Dataset, backbone: Backbone
) -> None:
    url, cache = own_cache
    cache.store.remove(INFO_NAME)
    assert opened(url, dataset, backbone) is None
    assert opened(f"{url}/nothing", dataset, backbone) is None


def test_everything_that_changes_features_changes_the_key(dataset: Dataset, backbone: Backbone, own_copy: Path) -> None:
    base = FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, SIDE)
    specs = [
        base,
        FeatureSpec("tf_efficientnet_lite1", (1, 2), 4, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 3), 4, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 2), 8, SIDE),
        FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, 128),
    ]

    def key(dataset: Dataset, backbone: Backbone, weights: str = WEIGHTS) -> str:
        folder = CacheFolder.of("anywhere", dataset, backbone, weights)
        names.append(folder.store.url)
        return json.dumps(folder.key, sort_keys=True)

    names: list[str] = []
    keys = [key(dataset, Backbone(spec)) for spec in specs]
    keys.append(key(dataset, backbone, "other weights"))
    keys.append(key(dataset, Backbone(base, chunk=64)))  # convolutions round by batch size
    edited = dataset.manifest.model_copy(update={"licence": "other"}).sealed()
    keys.append(key(Dataset(dataset.url, edited, dataset.table), backbone))
    assert len(set(keys)) == len(set(names)) == len(keys)
    assert key(dataset, backbone) == keys[0]


def test_other_weights_do_not_find_the_cache(built: FeatureCache, dataset: Dataset, backbone: Backbone) -> None:
    url = built.store.url.rsplit("/", 1)[0]
    assert opened(url, dataset, backbone, "other weights") is None


def damage(cache: FeatureCache, name: str, position: int) -> None:
    path = Path(cache.store.path(name))
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_damaged_record_is_refused(own_cache: tuple[str, FeatureCache]) -> None:
    _, cache = own_cache
    size = int(np.prod(cache.info.shape)) * 2 + DIGEST_BYTES
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
    name = cache.info.shards[0].moments
    damage(cache, name, -3)
    with pytest.raises(UserError, match=name):
        cache.moments(np.arange(2))


def test_a_record_in_anothers_place_is_refused(own_cache: tuple[str, FeatureCache]) -> None:
    _, cache = own_cache
    second = cache.fetch([1])[0]
    assert isinstance(cache.decode(1, second, "some sample"), torch.Tensor)
    assert isinstance(cache.decode(2, second, "some sample"), BadSample)


def test_the_description_does_not_grow_with_the_images(built: FeatureCache) -> None:
    assert len(built.store.read(INFO_NAME)) < 2000


@pytest.mark.parametrize("content", ["", "{", '{"format": "fmad-features/1"}'])
def test_a_damaged_description_is_refused(
    own_cache: tuple[str, FeatureCache], dataset: Dataset, backbone: Backbone, content: str
) -> None:
    url, cache = own_cache
    cache.store.write(INFO_NAME, content.encode())
    with pytest.raises(UserError, match=r"cache\.json: not readable"):
        opened(url, dataset, backbone)


def test_moments_are_those_of_the_rows(built: FeatureCache, tiny_mixture: Mixture) -> None:
    source = CachedSource(tiny_mixture, {"tiny": built})
    rows = tiny_mixture.rows("train")
    found = source.moments(rows[[7, 9, 20]])
    tokens = record(built, 7).double().flatten(1)
    np.testing.assert_allclose(found[0], torch.stack([tokens.sum(1), tokens.square().sum(1)]), rtol=1e-12)


def test_a_damaged_image_has_a_record_that_says_so(own_copy: Path, tmp_path: Path, backbone: Backbone) -> None:
    row, sample_id = damage_an_image(own_copy)
    dataset = load_dataset(str(own_copy))
    cache = build(str(tmp_path / "cache"), dataset, backbone)
    mixture = Mixture.load([str(own_copy)])
    source = CachedSource(mixture, {"tiny": cache})
    rows = mixture.rows("train")
    found = source.decode(source.fetch(rows.tolist()))
    assert [index for index, item in zip(rows, found, strict=True) if isinstance(item, BadSample)] == [row]
    assert [one.sample_id for one in source.damaged(rows[4:5])] == [sample_id]
    assert np.isnan(source.moments(rows)).any(axis=(1, 2)).nonzero()[0].tolist() == [4]
