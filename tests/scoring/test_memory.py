"""The memory of normal vectors against brute force: what is kept, and how images of a class score among each other;
the coreset against a brute-force greedy choice, and its radius where it is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fmad_dist.scoring.memory import PROJECTED, coreset, farthest_points, nearest, project, remember


def choose(points: torch.Tensor, size: int, first: int = 0) -> list[int]:
    told: list[int] = []
    chosen = farthest_points(points, size, first, told.append).tolist()
    assert sum(told) == size
    return chosen


def radius(points: torch.Tensor, chosen: list[int]) -> float:
    return torch.cdist(points, points[chosen]).min(dim=1).values.max().item()


def brute_force(points: np.ndarray, size: int, first: int) -> list[int]:
    """Every step looks at all distances anew, in whole numbers; of equally far points the first one."""
    chosen = [first]
    while len(chosen) < size:
        distances = ((points[:, None] - points[chosen][None]) ** 2).sum(-1).min(1)
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5), st.data())
def test_equals_brute_force(seed: int, num_points: int, dimensions: int, data: st.DataObject) -> None:
    """Small whole numbers, whose squares float32 holds exactly, with ties and equal points among them."""
    points = np.random.default_rng(seed).integers(-9, 10, (num_points, dimensions))
    size = data.draw(st.integers(1, num_points))
    first = data.draw(st.integers(0, num_points - 1))
    chosen = choose(torch.from_numpy(points).float(), size, first)
    assert chosen == brute_force(points, size, first)
    assert len(set(chosen)) == size


@pytest.mark.parametrize(("size", "expected"), [(1, 8.0), (2, 4.0), (3, 2.0), (5, 1.0), (9, 0.0)])
def test_radius_on_a_line_halves(size: int, expected: float) -> None:
    points = torch.arange(9.0)[:, None]
    assert radius(points, choose(points, size)) == expected


def test_one_point_of_every_cluster() -> None:
    """As many centres as clusters: no cluster is left out, so the radius is below a cluster's diameter."""
    generator = torch.Generator().manual_seed(2)
    middles = 100 * torch.eye(12)
    points = (middles.repeat_interleave(50, dim=0) + torch.rand(600, 12, generator=generator))[
        torch.randperm(600, generator=generator)
    ]
    chosen = choose(points, 12, first=77)
    assert sorted(points[chosen].argmax(dim=1).tolist()) == list(range(12))
    assert radius(points, chosen) < 12**0.5


def test_projection_keeps_distances_and_depends_on_the_seed_alone() -> None:
    points = torch.randn(60, 8 * PROJECTED, generator=torch.Generator().manual_seed(0))
    projected = project(points, seed=4)
    assert projected.shape == (60, PROJECTED)
    ratio = torch.pdist(projected) / torch.pdist(points)
    assert 0.6 < ratio.min() < 0.95 < ratio.mean() < 1.05 < ratio.max() < 1.4
    assert torch.equal(projected, project(points, seed=4))
    assert not torch.equal(projected, project(points, seed=5))
    few = points[:, :PROJECTED]
    assert project(few, seed=4) is few


def test_coreset_covers_and_depends_on_the_seed_alone() -> None:
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(9))
    kept = coreset(vectors, 64, 1)
    assert torch.equal(kept, coreset(vectors, 64, 1))
    assert not torch.equal(kept, coreset(vectors, 64, 2))
    assert coreset(vectors, 400, 1) is vectors
    assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in vectors.tolist()}
    assert len(kept.unique(dim=0)) == 64
    drawn = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:64]
    radius_of_kept = torch.cdist(vectors, kept).min(dim=1).values.max()
    assert radius_of_kept < 0.8 * radius(vectors, drawn.tolist())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def closest(vector: Tensor, others: Tensor) -> Tensor:
    return (others - vector).square().mean(dim=1).min()


def test_nearest_by_hand_and_in_batches() -> None:
    memory = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).half()
    assert nearest(torch.tensor([[3.0, 4.0], [1.0, 0.0], [3.0, 2.0]]), memory).tolist() == [0.0, 0.5, 2.0]
    vectors, memories = drawn(3, 7, 5), drawn(3, 11, 5, seed=1).half()
    found = nearest(vectors, memories)
    assert found.shape == (3, 7)
    for image, own, scores in zip(vectors, memories, found, strict=True):
        torch.testing.assert_close(scores, torch.stack([closest(one, own.float()) for one in image]))


@pytest.mark.parametrize("size", [2, 9, 10])
def test_an_image_is_measured_by_the_half_it_is_not_in(size: int) -> None:
    images = list(drawn(5, 3, 8))
    counted: list[int] = []
    memory, scores = remember(images, size, counted.append)
    assert sum(counted) == size
    assert (memory.shape, memory.dtype, scores.shape) == ((size, 3), torch.float16, (5, 8))
    first = size - size // 2
    own = [torch.cat(images[start::2], dim=1).T.half() for start in (0, 1)]
    for half, kept in zip(own, (memory[:first], memory[first:]), strict=True):
        assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in half.tolist()}
        assert len(kept.unique(dim=0)) == len(kept)
    for number, image in enumerate(images):
        others = memory[first:] if number % 2 == 0 else memory[:first]
        wanted = torch.stack([closest(vector, others.float()) for vector in image.T])
        torch.testing.assert_close(scores[number], wanted, rtol=1e-4, atol=1e-5)


def test_with_room_for_all_every_vector_is_kept() -> None:
    images = list(drawn(4, 3, 6))
    counted: list[int] = []
    memory, _ = remember(images, 100, counted.append)
    assert sum(counted) == 4 * 6
    assert memory.shape == (100, 3)
    everything = torch.cat(images, dim=1).T.half()
    assert {tuple(row) for row in memory.tolist()} == {tuple(row) for row in everything.tolist()}
    assert nearest(everything.float(), memory).max() < 1e-6


def test_the_only_image_is_measured_by_its_other_locations() -> None:
    image = drawn(3, 9)
    _, scores = remember([image], 100)
    assert scores.shape == (1, 9)
    for place, vector in enumerate(image.T):
        others = image.T[1 - place % 2 :: 2]
        torch.testing.assert_close(scores[0, place], closest(vector, others), rtol=2e-3, atol=1e-4)
