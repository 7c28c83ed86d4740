"""Distances to memory banks against brute force; nothing depends on batches or on who is told what."""

import pytest
import torch
from torch import Tensor

from fmad_dist.comparison import bank as bank_module
from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches

CHANNELS, GRID = 6, 4


def no_field(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("a memory bank has no velocity")


def features(num_images: int, seed: int) -> Tensor:
    return torch.randn(num_images, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(seed))


def vectors_of(x: Tensor, patches: Patches = Patches()) -> Tensor:
    return patches(x).flatten(0, 1)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("chunk", [5, 16, 1000])
def test_distances_equal_brute_force(neighbours: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "SEARCH_CHUNK", chunk)
    kept, x = vectors_of(features(3, 1)), features(5, 2)
    found = BankScorer([MemoryBank(kept)], Patches(), neighbours)(no_field, x, range(5))
    every = torch.cdist(vectors_of(x).double(), kept.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = every.sort(dim=1).values[:, :neighbours].mean(dim=1).view(5, GRID, GRID)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_more_neighbours_than_kept_patches() -> None:
    kept = vectors_of(features(1, 1))[:2]
    found = MemoryBank(kept).distances(kept[:1], 5)
    torch.testing.assert_close(found, (kept[0] - kept[1]).norm()[None] / 2)


@pytest.mark.parametrize("side", [1, 3])
def test_a_training_image_scores_zero_but_where_it_is_changed(side: int) -> None:
    normal, patches = 1000.0 + features(4, 3), Patches(side)  # far from 0, where products cancel
    scorer = BankScorer([MemoryBank(vectors_of(normal, patches))], patches)
    test = normal[[2]].clone()
    assert scorer(no_field, test, [0]).abs().max() == 0
    test[0, :, 1, 3] += 5.0
    scores = scorer(no_field, test, [0])[0]
    touched = torch.zeros(GRID, GRID, dtype=torch.bool)
    reach = side // 2
    touched[max(0, 1 - reach) : 2 + reach, 3 - reach :] = True
    assert ((scores > 0) == touched).all()


def test_scores_have_the_same_bits_in_any_batch() -> None:
    x, patches = features(7, 4), Patches(3)
    scorer = BankScorer([MemoryBank(vectors_of(features(9, 5), patches))], patches)
    whole = scorer(no_field, x, range(7))
    alone = torch.cat([scorer(no_field, x[[image]], [0]) for image in range(7)])
    assert torch.equal(whole, alone)
    order = [3, 0, 6]
    assert torch.equal(scorer(no_field, x[order], [0] * 3), whole[order])


def test_banks_per_class_are_told_the_class_and_pooled_ones_do_not_listen() -> None:
    kept = [vectors_of(features(2, seed)) for seed in (6, 7)]
    x = features(3, 8)
    per_class = BankScorer([MemoryBank(one) for one in kept], Patches(), per_class=True)
    single = [BankScorer([MemoryBank(one)], Patches())(no_field, x, range(3)) for one in kept]
    found = per_class.for_classes([1, 0, 1])(no_field, x, range(3))
    assert torch.equal(found, torch.stack([single[1][0], single[0][1], single[1][2]]))
    with pytest.raises(AssertionError):
        per_class(no_field, x, range(3))
    pooled = BankScorer([MemoryBank(torch.cat(kept))], Patches())
    assert pooled.for_classes([1, 0, 1]) is pooled
    torch.testing.assert_close(pooled(no_field, x, range(3)), torch.minimum(*single))
    one_class = BankScorer([MemoryBank(kept[0])], Patches(), per_class=True).for_classes([0, 0, 0])
    assert torch.equal(one_class(no_field, x, range(3)), single[0])


def test_patches_average_their_neighbourhood() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    x[:, 1] += 100
    found = Patches(3)(x).view(4, 4, 2)
    assert found[1, 1].tolist() == [5.0, 105.0]
    assert found[0, 0].tolist() == [2.5, 102.5]  # a corner has four neighbours, counting itself
    assert Patches(1, torch.tensor([1]))(x).tolist() == [[[100.0 + n] for n in range(16)]]
