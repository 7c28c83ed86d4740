"""What is worked out is what the readers then do."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.cli.data import app
from fmad_dist.config.files import load_config
from fmad_dist.config.run import DataConfig
from fmad_dist.stream import epoch_reads as epoch_reads_module
from fmad_dist.stream.epoch_reads import ImageLocations, epoch_reads
from fmad_dist.stream.training_stream import TrainingStream, open_stream


@pytest.fixture(scope="module")
def stream(tiny_url: str, alpha_url: str) -> TrainingStream:
    return open_stream(DataConfig(manifests=(tiny_url, alpha_url)), seed=3)


@pytest.mark.parametrize(
    ("nodes", "gpus", "batch", "micro"), [(1, 1, 1, None), (2, 2, 8, 1), (3, 1, 6, 2), (2, 4, 8, None)]
)
def test_counts_are_those_of_the_ranks(
    stream: TrainingStream, nodes: int, gpus: int, batch: int, micro: int | None
) -> None:
    """Against reading the positions of every rank one by one."""
    run = epoch_reads(stream, nodes=nodes, gpus=gpus, global_batch=batch, micro_batch=micro, epoch=1)
    size = stream.plan.epoch_size
    read: dict[int, list[int]] = {rank: [] for rank in range(nodes * gpus)}
    for step in range(size // batch, 2 * size // batch + 1):
        for rank in read:
            positions = run.layout.positions(step * run.layout.global_batch, rank).ravel()
            read[rank] += stream.plan.at(positions[(positions >= size) & (positions < 2 * size)]).tolist()
    samples = {row: locate(stream, row) for own in read.values() for row in own}
    for rank, own in read.items():
        assert run.samples_per_rank[rank] == len(own)
        assert run.bytes_per_rank[rank] == sum(samples[row][1] for row in own)
        assert run.shards_per_rank[rank] == len({samples[row][0] for row in own})
        assert run.first_samples(rank) == [stream.mixture.sample_id(row) for row in own[:2]]
    for node in range(nodes):
        own = {row for rank in range(node * gpus, (node + 1) * gpus) for row in read[rank]}
        assert run.images_per_node[node] == len(own)
        assert run.shards_per_node[node] == len({samples[row][0] for row in own})
    assert sum(map(len, read.values())) == size


def locate(stream: TrainingStream, row: int) -> tuple[str, int]:
    dataset, index = stream.mixture.locate(row)
    sample = dataset.sample(index)
    assert sample.image is not None
    return f"{dataset.name}/{sample.shard}", sample.image.size


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900), st.integers(1, 350)), min_size=1, max_size=30))
def test_blocks_are_all_that_the_images_touch(images: list[tuple[int, int, int]]) -> None:
    shards, offsets, sizes = (np.array(column) for column in zip(*images, strict=True))
    before, epoch_reads_module.BLOCK_BYTES = epoch_reads_module.BLOCK_BYTES, 100
    try:
        locations = ImageLocations(shards, offsets, sizes, np.full(4, 1250))
        found, num_bytes = locations.blocks(np.arange(len(images))), locations.cache_bytes(np.arange(len(images)))
    finally:
        epoch_reads_module.BLOCK_BYTES = before
    touched = {(s, byte // 100) for s, start, size in images for byte in range(start, start + size)}
    assert [(int(key) >> 24, int(key) % (1 << 24)) for key in found] == sorted(touched)
    assert num_bytes == sum(min(100, 1250 - 100 * block) for _, block in touched)


def test_a_configuration_plans_what_it_trains(tiny_url: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"data": {"manifests": [tiny_url]}, "train": {"seed": 5, "global_batch": 12}}))
    config = load_config(path, ["data.temperature=2"])
    digest = open_stream(config.data, config.train.seed).plan.digest
    arguments = ["plan", "data.temperature=2", "--config", str(path), "--nodes", "2", "--gpus", "3"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "plan.csv")], env={"COLUMNS": "200"})
    assert digest in found.output
    assert "tiny/washer" in found.output
    assert "12 = 6 ranks x 2 images" in found.output
    rows = list(csv.DictReader((tmp_path / "plan.csv").open()))
    assert [row["node"] for row in rows] == list("000111")
    size = open_stream(config.data, 5).plan.epoch_size
    assert sum(int(row["samples"]) for row in rows) == size


def test_many_ranks_are_summed_up(tiny_url: str) -> None:
    found = CliRunner().invoke(
        app, ["plan", "--data", tiny_url, "--nodes", "8", "--gpus", "8", "--batch", "1"], env={"COLUMNS": "200"}
    )
    assert found.exit_code == 0
    assert "64 ranks " in found.output


@pytest.mark.parametrize(
    ("nodes", "gpus", "batch", "epoch", "message"),
    [
        (0, 1, 1, 0, "--nodes 0"),
        (1, 0, 1, 0, "--gpus 0"),
        (1, 1, 0, 0, "--batch 0"),
        (1, 1, 1, -1, "--epoch -1"),
        (1, 3, 4, 0, "3 processes"),
    ],
)
def test_bad_sizes(stream: TrainingStream, nodes: int, gpus: int, batch: int, epoch: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        epoch_reads(stream, nodes=nodes, gpus=gpus, global_batch=batch, epoch=epoch)
