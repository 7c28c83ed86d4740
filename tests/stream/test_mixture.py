import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.stream.dataset import INDEX_SCHEMA, Dataset, index_bytes, load_dataset
from fmad_dist.stream.manifest import IndexInfo, Manifest, Rendition
from fmad_dist.stream.mixture import Mixture, split_normals


def in_memory(name: str, sizes: dict[str, int], test: int = 1, val: dict[str, int] | None = None) -> Dataset:
    """A dataset without shards: `sizes` training images per class, `val` validation and `test` test images each."""
    rows = [
        dict.fromkeys(INDEX_SCHEMA.names)
        | {"sample_id": f"{name}/{c}/{split}/good/{n:03d}", "class_name": c, "split": split, "label": 0}
        for c, size in sizes.items()
        for split, count in (("train", size), ("test", test), ("val", (val or {}).get(c, 0)))
        for n in range(count)
    ]
    manifest = Manifest(
        dataset=name,
        layout="mvtec",
        licence="CC0",
        source="",
        rendition=Rendition(size=16, image_resample="none", mask_resample="none"),
        source_digest="",
        classes={},
        shards=[],
        index=IndexInfo(name="", num_bytes=0, num_samples=len(rows), sha256=str(sizes)),
    ).sealed()
    index = index_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    return Dataset(f"memory://{name}", manifest, pq.read_table(io.BytesIO(index), schema=INDEX_SCHEMA))


def mixture_of(*datasets: Dataset) -> Mixture:
    return Mixture(datasets, np.cumsum([0, *(len(dataset) for dataset in datasets)]))


@pytest.fixture
def two_urls(tiny_url: str, alpha_url: str) -> tuple[str, str]:
    return tiny_url, alpha_url


def test_the_order_of_urls_does_not_matter(two_urls: tuple[str, str]) -> None:
    one, other = Mixture.load(two_urls), Mixture.load(two_urls[::-1])
    assert [dataset.name for dataset in one.datasets] == ["alpha", "tiny"]
    assert one.digest == other.digest
    assert one.class_names == other.class_names
    np.testing.assert_array_equal(one.class_numbers, other.class_numbers)
    np.testing.assert_array_equal(one.rows("train"), other.rows("train"))


def test_the_digest_names_the_datasets(two_urls: tuple[str, str]) -> None:
    digests = {Mixture.load(urls).digest for urls in (two_urls, two_urls[:1], two_urls[1:])}
    assert len(digests) == 3


def test_the_same_dataset_twice_is_refused(tiny_url: str, own_copy: Path) -> None:
    with pytest.raises(UserError) as caught:
        Mixture.load([tiny_url, str(own_copy)])
    assert tiny_url in str(caught.value)
    assert str(own_copy) in str(caught.value)
    assert "'tiny'" in str(caught.value)


def test_no_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.manifests"):
        Mixture.load([])


def test_class_names_and_counts(two_urls: tuple[str, str]) -> None:
    mixture = Mixture.load(two_urls)
    assert mixture.class_names == ["alpha/cap", "alpha/rod", "tiny/bolt", "tiny/nut", "tiny/washer"]
    train = mixture.class_numbers[mixture.rows("train")]
    assert np.bincount(train).tolist() == [3, 2, 5, 7, 12]
    assert len(mixture.rows("val")) == 0
    assert len(mixture.rows("test")) == 10


def test_every_global_index_is_located(two_urls: tuple[str, str]) -> None:
    mixture = Mixture.load(two_urls)
    rows = [
        (name, row)
        for name, url in zip(("alpha", "tiny"), two_urls[::-1], strict=True)
        for row in range(len(load_dataset(url)))
    ]
    located = [mixture.locate(index) for index in range(len(rows))]
    assert [(dataset.name, row) for dataset, row in located] == rows
    for index, (dataset, row) in enumerate(located):
        sample = dataset.sample(row)
        assert mixture.sample_id(index) == sample.sample_id
        assert mixture.class_names[mixture.class_numbers[index]] == f"{sample.dataset}/{sample.class_name}"


def test_a_class_without_training_images_has_no_number() -> None:
    mixture = mixture_of(in_memory("toy", {"a": 2, "only-tested": 0, "z": 2}))
    assert mixture.class_names == ["toy/a", "toy/z"]
    assert mixture.class_numbers.tolist() == [0, 0, 0, -1, 1, 1, 1]


@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.floats(0.001, 0.899))
def test_the_held_out_share_is_taken_from_every_class(sizes: list[int], holdout: float) -> None:
    mixture = mixture_of(in_memory("toy", {f"c{number}": size for number, size in enumerate(sizes)}))
    split = split_normals(mixture, holdout)
    np.testing.assert_array_equal(np.union1d(split.train, split.held_out), mixture.rows("train"))
    assert len(np.intersect1d(split.train, split.held_out)) == 0
    held = np.bincount(mixture.class_numbers[split.held_out], minlength=len(sizes))
    assert held.tolist() == [min(max(1, round(holdout * size)), size - 1) for size in sizes]
    assert (np.diff(split.train) > 0).all()
    assert (np.diff(split.held_out) > 0).all()


def test_other_datasets_do_not_change_what_is_held_out() -> None:
    tiny, other = in_memory("tiny", {"a": 40, "b": 30}), in_memory("alpha", {"c": 20})
    alone, together = mixture_of(tiny), mixture_of(other, tiny)
    held_alone = {alone.sample_id(int(i)) for i in split_normals(alone, 0.2).held_out}
    held_together = {together.sample_id(int(i)) for i in split_normals(together, 0.2).held_out}
    assert held_alone == {name for name in held_together if name.startswith("tiny/")}


def test_a_new_image_moves_no_image_from_held_out_to_train() -> None:
    """The smallest hashes are held out, so growing a class only adds to the pool they are taken from."""
    before, after = mixture_of(in_memory("toy", {"a": 20})), mixture_of(in_memory("toy", {"a": 21}))
    held = {before.sample_id(int(i)) for i in split_normals(before, 0.2).held_out}
    held_after = {after.sample_id(int(i)) for i in split_normals(after, 0.2).held_out}
    new = "toy/a/train/good/020"
    assert len(held) == len(held_after) == 4
    assert held_after - held <= {new}


def test_the_held_out_split_is_stable_for_ever() -> None:
    """Changing this choice would let old runs train on what new runs calibrate on."""
    mixture = mixture_of(in_memory("toy", {"a": 10}))
    held = [mixture.sample_id(int(i)) for i in split_normals(mixture, 0.3).held_out]
    assert held == [f"toy/a/train/good/{number:03d}" for number in (1, 2, 8)]


def test_validation_normals_are_held_out_instead_of_training_images() -> None:
    mixture = mixture_of(in_memory("loco", {"box": 10, "pin": 10, "one": 1}, val={"box": 3, "one": 2}))
    split = split_normals(mixture, 0.2)
    held = [mixture.sample_id(int(i)).split("/")[1:3] for i in split.held_out]
    assert sorted(map(tuple, held)) == [("box", "val")] * 3 + [("one", "val")] * 2 + [("pin", "train")] * 2
    assert np.bincount(mixture.class_numbers[split.train]).tolist() == [10, 1, 8]  # box, one, pin


def test_a_class_with_one_image_is_refused() -> None:
    mixture = mixture_of(in_memory("toy", {"a": 5, "lonely": 1}))
    with pytest.raises(UserError, match="toy/lonely: 1 training image"):
        split_normals(mixture, 0.1)
