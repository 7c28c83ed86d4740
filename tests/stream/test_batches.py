"""From positions to batches, in this process and in worker processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream import batches as batches_module
from fmad_dist.stream.batches import Batch, Failure, Request, StreamDataset, stream_batches
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import BatchLayout, StreamPlan
from fmad_dist.stream.reader import SampleReader
from tests.stream.damage import flip, shard_of

SIDE = 64


def stream_over(url: str) -> StreamDataset:
    mixture = Mixture.load([url])
    rows = mixture.rows("train")
    return StreamDataset(
        ImageSource(mixture, SIDE), mixture, StreamPlan(rows, mixture.class_numbers[rows], mixture.digest)
    )


def steps(stop: int) -> Iterator[np.ndarray]:
    return BatchLayout.fit(10, 5, 1).batches(0, range(0, 10 * stop, 10))


def test_a_batch_is_what_the_plan_says(tiny_url: str) -> None:
    dataset = stream_over(tiny_url)
    positions = np.array([0, 23, 24, 40])
    batch = dataset.batch(positions)
    indices = dataset.plan.at(positions)
    assert batch.data.dtype == torch.uint8
    assert batch.data.shape == (4, 3, SIDE, SIDE)
    assert batch.positions.tolist() == positions.tolist()
    assert batch.sample_ids == tuple(dataset.mixture.sample_id(int(index)) for index in indices)
    names = [dataset.mixture.class_names[label] for label in batch.labels]
    assert names == [sample_id.rsplit("/", 3)[0] for sample_id in batch.sample_ids]
    reader = SampleReader(dataset.mixture.datasets[0])
    for image, index in zip(batch.data, indices, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), reader.image(int(index)))


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one.data, other.data)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.positions, other.positions)
    assert one.sample_ids == other.sample_ids


READS = """
import sys, time
from tests.stream.test_batches import steps, stream_over
from fmad_dist.stream.batches import stream_batches
if __name__ == "__main__":
    batches = stream_batches(stream_over(sys.argv[1]), steps(500), workers=2)
    for _ in range(4):  # the first ones are read by the process itself
        next(batches)
    print("here", flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed(tiny_url: str, tmp_path: Path) -> None:
    """It has no time to end them, and their parent is the server that made them."""
    (tmp_path / "reads.py").write_text(READS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "reads.py"), tiny_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 3, "a server and two workers"
        process.kill()
    assert psutil.wait_procs(started, timeout=30)[1] == []


def damaged_after(own_copy: Path, position: int) -> tuple[StreamDataset, Path, str]:
    """A stream whose sample at `position` is damaged, with its shard and its id."""
    dataset = stream_over(str(own_copy))
    victim = int(dataset.plan.at(np.array([position]))[0])
    shard, offset, _ = shard_of(own_copy, victim)
    flip(shard, offset + 50)
    return dataset, shard, dataset.mixture.sample_id(victim)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches_without_the_damaged_sample(own_copy: Path, tiny_url: str, workers: int) -> None:
    healthy = stream_over(tiny_url)
    dataset, shard, sample_id = damaged_after(own_copy, position=17)
    following = healthy.batch(np.array([18])).sample_ids[0]
    batches = list(stream_batches(dataset, steps(3), workers=workers))
    assert [batch.positions.tolist() for batch in batches] == [list(range(n, n + 5)) for n in range(0, 30, 5)]
    for batch in batches:
        expected = healthy.batch(batch.positions.numpy())
        if sample_id not in expected.sample_ids:
            assert_equal(batch, expected)
            assert not batch.bad
            continue
        assert [(one.sample_id, one.url) for one in batch.bad] == [(sample_id, str(shard))]
        if 17 in batch.positions:  # its place is taken by the next one
            assert batch.sample_ids == tuple(following if one == sample_id else one for one in expected.sample_ids)
            assert torch.equal(batch.data[2], batch.data[3])
            assert torch.equal(batch.labels[2], batch.labels[3])


PICKLING, CHANGED = threading.Event(), threading.Event()


class Slow:
    """While it is pickled, what it belongs to changes, if anybody is there to do it."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        PICKLING.set()
        CHANGED.wait(0.5)
        return Slow, ()


def test_workers_may_start_while_their_dataset_is_used(tiny_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batches are read meanwhile, which changes the dataset: caches are filled."""
    dataset = stream_over(tiny_url)
    dataset.source.slow = Slow()  # type: ignore[attr-defined]
    read = StreamDataset.batch

    def filling_a_cache(self: StreamDataset, positions: np.ndarray) -> Batch:
        assert PICKLING.wait(30)
        self.source.cache = True  # type: ignore[attr-defined]
        CHANGED.set()
        return read(self, positions)

    monkeypatch.setattr(StreamDataset, "batch", filling_a_cache)
    assert len(list(stream_batches(dataset, steps(3), workers=1))) == 6


def test_a_stream_of_damaged_samples_is_an_error(own_copy: Path) -> None:
    for shard in (own_copy / "shards").iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="samples that follow it are damaged too"):
        stream_over(str(own_copy)).batch(np.array([0]))


def test_a_missing_shard_is_a_failure_and_no_bad_sample(own_copy: Path) -> None:
    dataset = stream_over(str(own_copy))
    for shard in (own_copy / "shards").iterdir():
        shard.unlink()
    found = dataset[Request([0], [])]
    assert isinstance(found, Failure)
    assert "not found" in found.message


def test_bytes_are_fetched_ahead_and_used(tiny_url: str) -> None:
    """From a store that counts: each batch is fetched once, the two that follow while it is decoded."""
    remote = Store("memory://ahead/tiny")
    for name in Store(tiny_url).list():
        remote.write(name, Store(tiny_url).read(name))
    dataset, local = stream_over(remote.url), stream_over(tiny_url)
    fetched: list[list[int]] = []
    fetch = dataset.source.fetch
    dataset.source.fetch = lambda indices: (fetched.append(list(indices)), fetch(indices))[1]  # type: ignore[method-assign]
    for batch in stream_batches(dataset, steps(3), workers=0):
        assert_equal(batch, local.batch(batch.positions.numpy()))
    expected = [local.plan.at(positions).tolist() for positions in steps(3)]
    assert sorted(fetched) == sorted(expected)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_is_fetched_ahead_is_what_the_same_worker_gets_next(workers: int) -> None:
    requests = list(batches_module._requests(steps(7), workers))
    assert [request.positions for request in requests] == [positions.tolist() for positions in steps(7)]
    for worker in range(workers):
        own = requests[worker::workers]  # the loader deals in turn
        for number, request in enumerate(own):
            following = [other.positions for other in own[number + 1 : number + 1 + batches_module.READ_AHEAD]]
            assert request.ahead == following


def test_images_of_another_size_are_refused(tiny_mixture: Mixture) -> None:
    with pytest.raises(UserError, match="stores 64 px images and not 128") as caught:
        ImageSource(tiny_mixture, 128)
    assert tiny_mixture.datasets[0].url in str(caught.value)


def test_pinning_reaches_the_tensors_of_a_batch(tiny_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch pins what it knows or what has a `pin_memory`; a plain dataclass would silently stay pageable."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor + 1)
    batch = stream_over(tiny_url).batch(np.array([0, 1]))
    pinned = pin_memory(batch)
    assert torch.equal(pinned.data, batch.data + 1)
    assert torch.equal(pinned.labels, batch.labels + 1)
    assert torch.equal(pinned.positions, batch.positions + 1)
    assert pinned.sample_ids == batch.sample_ids
