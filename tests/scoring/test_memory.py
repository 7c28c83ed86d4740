"""The memory of normal vectors against brute force: what is kept, and how images of a class score among each other."""

import pytest
import torch
from torch import Tensor

from fmad_dist.scoring.memory import nearest, remember


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
