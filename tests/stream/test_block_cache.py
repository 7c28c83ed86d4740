"""A cache of blocks on disk: whole or absent, bounded, shared by processes, and never trusted."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ReadOptions
from fmad_dist.storage import Store
from fmad_dist.stream import block_cache as blockcache_module
from fmad_dist.stream import reader as shards_module
from fmad_dist.stream.block_cache import BlockCache
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.reader import BadSample, SampleReader


def refuse() -> bytes:
    raise AssertionError("fetched although it is cached")


def give(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def test_a_block_is_fetched_once(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 10**6)
    assert cache.get("aa-0", 2, 5, give(b"0123456789")) == b"234"
    assert cache.get("aa-0", 0, 10, refuse) == b"0123456789"
    assert cache.num_bytes() == 10
    cache.drop("aa-0")
    assert not cache.has("aa-0")
    assert cache.get("aa-0", 0, 1, give(b"x")) == b"x"


def test_missing_blocks_are_filled_in_one_call(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10**6)
    cache.get("b", 0, 1, give(b"B"))
    calls: list[list[str]] = []

    def fetch(wanted: Sequence[str]) -> list[bytes]:
        calls.append(list(wanted))
        return [name.encode() for name in wanted]

    cache.fill({"a": "A", "b": "B", "c": "C"}, fetch)
    cache.fill({"a": "A", "b": "B", "c": "C"}, lambda _: pytest.fail("all are there"))
    assert calls == [["A", "C"]]
    assert [cache.get(key, 0, 1, refuse) for key in "abc"] == [b"A", b"B", b"C"]


def test_the_blocks_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockcache_module, "_TOUCH_AFTER_S", 0)
    cache = BlockCache(tmp_path, 1000)
    for number in range(10):
        cache.get(f"{number:02d}", 0, 1, give(bytes(100)))
        os.utime(tmp_path / f"{number:02d}" / f"{number:02d}", (1000 + number, 1000 + number))
    cache.get("00", 0, 1, refuse)  # used again: now the newest
    cache.get("10", 0, 1, give(bytes(100)))
    assert [number for number in range(11) if cache.has(f"{number:02d}")] == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    assert cache.num_bytes() <= 1000


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / ".tmp-left").write_bytes(bytes(5000))
    cache.get("bb", 0, 1, give(bytes(100)))
    assert not (tmp_path / "aa" / ".tmp-left").exists()
    assert cache.has("bb")


def use_cache(folder: str, seed: int, log: str) -> None:
    """Reads 200 blocks in random order through a cache too small for all, and logs what it fetched."""
    cache = BlockCache(folder, 60_000)
    rng = np.random.default_rng(seed)
    fetched = 0
    for key in [*range(40), *rng.integers(0, 40, 160).tolist()]:
        content = bytes([key]) * 2000

        def fetch(content: bytes = content) -> bytes:
            nonlocal fetched
            fetched += 1
            time.sleep(0.002)
            return content

        assert cache.get(f"{key:02d}", 10, 1990, fetch) == content[10:1990]
    Path(log).write_text(str(fetched))


def test_four_processes_share_a_cache_that_is_too_small(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    folder = str(tmp_path / "cache")
    processes = [context.Process(target=use_cache, args=(folder, n, str(tmp_path / f"log{n}"))) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert BlockCache(folder, 60_000).num_bytes() <= 60_000 * 1.1
    assert not list(Path(folder).rglob(".tmp-*"))


def test_four_processes_fetch_each_block_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=use_large_cache, args=(str(tmp_path / "cache"), str(tmp_path / f"log{n}")))
        for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sum(int((tmp_path / f"log{n}").read_text()) for n in range(4)) == 30


def use_large_cache(folder: str, log: str) -> None:
    cache = BlockCache(folder, 10**9)
    fetched: list[int] = []
    for key in range(30):

        def fetch(key: int = key) -> bytes:
            fetched.append(key)
            time.sleep(0.005)
            return bytes([key])

        assert cache.get(f"{key}", 0, 1, fetch) == bytes([key])
    Path(log).write_text(str(len(fetched)))


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.cache .*file"):
        BlockCache(tmp_path / "file", 10)


@pytest.fixture
def remote_url(tiny_url: str) -> str:
    remote = Store(f"memory://blocks/{os.getpid()}")
    for name in Store(tiny_url).list():
        remote.write(name, Store(tiny_url).read(name))
    return remote.url


def cached_reader(url: str, folder: Path, size: int = 10**9) -> SampleReader:
    return SampleReader(load_dataset(url), options=ReadOptions(str(folder), size))


@pytest.mark.parametrize("block", [1000, 4096, 4 << 20])
def test_cached_images_are_the_stored_ones(
    remote_url: str, tiny_url: str, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks smaller and larger than images, which may lie across several."""
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", block)
    reader, direct = cached_reader(remote_url, tmp_path), SampleReader(load_dataset(tiny_url))
    rows = list(range(len(direct.dataset)))
    for found in (reader.images(rows), reader.images(rows[::-1])[::-1]):
        for row, image in zip(rows, found, strict=True):
            np.testing.assert_array_equal(image, direct.image(row))
    expected = direct.image(3)
    monkeypatch.setattr(Store, "read_ranges", lambda *_: pytest.fail("everything is cached"))
    np.testing.assert_array_equal(cached_reader(remote_url, tmp_path).image(3), expected)


def test_a_damaged_block_is_fetched_again(remote_url: str, tiny_url: str, tmp_path: Path) -> None:
    reader = cached_reader(remote_url, tmp_path)
    expected = reader.image(5)
    for path in tmp_path.glob("??/*"):
        path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(cached_reader(remote_url, tmp_path).image(5), expected)
    for path in tmp_path.glob("??/*"):
        path.write_bytes(b"")
    np.testing.assert_array_equal(cached_reader(remote_url, tmp_path).image(5), expected)


def test_a_damaged_shard_is_a_bad_sample_with_a_cache_too(remote_url: str, tmp_path: Path) -> None:
    dataset = load_dataset(remote_url)
    sample = dataset.sample(5)
    assert sample.image is not None
    data = bytearray(Store(remote_url).read(sample.shard))
    data[sample.image.offset + 9] ^= 1
    Store(remote_url).write(sample.shard, bytes(data))
    found = cached_reader(remote_url, tmp_path).images([4, 5, 6])
    assert [isinstance(image, BadSample) for image in found] == [False, True, False]


def test_a_dataset_larger_than_the_cache_is_read_by_spans(remote_url: str, tmp_path: Path) -> None:
    """Whole blocks would be thrown away before their other images are needed."""
    reader = cached_reader(remote_url, tmp_path / "cache", size=1000)
    assert reader.shards.cache is None
    assert reader.image(0).shape == (64, 64, 3)


def test_local_datasets_need_no_cache(tiny_url: str, tmp_path: Path) -> None:
    assert cached_reader(tiny_url, tmp_path).shards.cache is None
