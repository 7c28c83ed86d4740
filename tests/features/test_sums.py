"""Sums of features over classes: those of all images, with the same bits for any number of ranks and parts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from fmad_dist.base.world import World
from fmad_dist.features import sums as sums_module
from fmad_dist.features.sums import FeatureSums, summed
from fmad_dist.features.whitening import NormName, Whitening, image_moments

TOKENS, CHANNELS, CLASSES = 9, 5, 4


@pytest.fixture
def features() -> torch.Tensor:
    """Forty images, one damaged."""
    found = torch.randn(40, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(0))
    found[7] = torch.nan
    return found


NUMBERS = np.random.default_rng(1).integers(0, CLASSES, 40)


@dataclass(frozen=True)
class Ranks:
    """What `size` ranks do one after the other: the first pass collects, the second has the sum."""

    size: int
    found: list[np.ndarray] = field(default_factory=list)

    def sums(self, features: torch.Tensor, norm: Whitening) -> FeatureSums:
        table = image_moments(features)

        def moments(rows: np.ndarray) -> Iterator[np.ndarray]:
            yield from (table[rows[start : start + 3]] for start in range(0, len(rows), 3))

        for rank in range(self.size):
            world = _OneOf(rank, self.size)
            found = summed(np.arange(40), NUMBERS, CLASSES, moments, norm, TOKENS, world)
            self.found.append(np.concatenate([found.counts[:, None], found.moments.reshape(CLASSES, -1)], axis=1))
        return found


class _OneOf(World):
    """A rank that hears nothing of the others."""

    def combined(self, values: np.ndarray) -> np.ndarray:
        return values


@pytest.mark.parametrize("norm", ["channel", "layer"])
def test_class_means_are_those_of_the_whitened_images(features: torch.Tensor, norm: NormName) -> None:
    whitening = Whitening(CHANNELS, norm)
    found = Ranks(1).sums(features, whitening)
    found.set(whitening, TOKENS)
    readable = np.arange(40) != 7
    assert found.counts.tolist() == np.bincount(NUMBERS[readable]).tolist()
    white = whitening(features)
    for number in range(CLASSES):
        expected = white[readable & np.equal(NUMBERS, number)].mean(dim=(0, 2, 3))
        torch.testing.assert_close(found.class_means(whitening, TOKENS)[number], expected, atol=1e-5, rtol=1e-5)
    if norm == "channel":
        assert white[readable].mean(dim=(0, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [2, 3, 30])
def test_the_number_of_ranks_changes_no_bit(features: torch.Tensor, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is one rank's, so each rank's sums of a class of one part are those of all ranks or nothing."""
    whitening = Whitening(CHANNELS)
    alone = Ranks(1)
    alone.sums(features, whitening)
    several = Ranks(size)
    several.sums(features, whitening)
    np.testing.assert_array_equal(np.sum(several.found, axis=0), alone.found[0])
    monkeypatch.setattr(sums_module, "PART_IMAGES", 4)
    in_parts = Ranks(1)
    in_parts.sums(features, whitening)
    np.testing.assert_allclose(in_parts.found[0], alone.found[0], rtol=1e-12, atol=1e-12)
