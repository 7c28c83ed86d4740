import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.flow.noise import (
    _hashes,
    _mixed,
    content_keys,
    keyed_generator,
    keyed_noise,
    keyed_signs,
    keyed_times,
)

CPU = torch.device("cpu")
KEYS = st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**40)


@given(SEEDS, KEYS, st.randoms())
def test_a_row_depends_on_its_own_key_alone(seed: int, keys: list[int], random: object) -> None:
    noise, times = keyed_noise(seed, keys, (2, 3), CPU), keyed_times(seed, keys)
    order = sorted(range(len(keys)), key=lambda _: random.random())  # type: ignore[attr-defined]
    shuffled = [keys[i] for i in order]
    assert torch.equal(keyed_noise(seed, shuffled, (2, 3), CPU), noise[order])
    assert torch.equal(keyed_times(seed, shuffled), times[order])
    for row, key in enumerate(keys):
        assert torch.equal(keyed_noise(seed, [key], (2, 3), CPU)[0], noise[row])
        assert torch.equal(keyed_times(seed, [key])[0], times[row])


def test_every_seed_and_position_has_its_own_draws() -> None:
    rows = torch.cat([keyed_noise(seed, range(200), (4,), CPU) for seed in (0, 1, 2**33)])
    assert len(torch.unique(rows, dim=0)) == 600
    times = torch.cat([keyed_times(seed, range(200)) for seed in (0, 1, 2**33)])
    assert len(torch.unique(times)) > 590  # float32 draws may meet by chance


def test_seed_and_position_are_not_exchangeable() -> None:
    assert not torch.equal(keyed_noise(1, [2], (4,), CPU), keyed_noise(2, [1], (4,), CPU))


def test_noise_is_standard_normal() -> None:
    noise = keyed_noise(0, range(500), (20, 20), CPU).double()
    assert noise.dtype == torch.float64
    assert noise.mean().abs() < 4 / (noise.numel() ** 0.5)
    assert (noise.square().mean() - 1).abs() < 4 * (2 / noise.numel()) ** 0.5
    assert (noise.pow(4).mean() - 3).abs() < 4 * (96 / noise.numel()) ** 0.5
    neighbours = (noise[:-1] * noise[1:]).mean()  # of neighbouring positions
    assert neighbours.abs() < 4 / (noise[1:].numel() ** 0.5)


def test_times_are_uniform_on_the_unit_interval() -> None:
    times = keyed_times(0, range(4000))
    assert times.dtype == torch.float32
    assert times.min() >= 0.0
    assert times.max() < 1.0
    counts = torch.histc(times, bins=10, min=0.0, max=1.0)
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 27.9  # the 0.1 % tail at 9 degrees of freedom
    steps = torch.corrcoef(torch.stack([times[:-1], times[1:]]))[0, 1]
    assert steps.abs() < 4 / 4000**0.5


def test_times_do_not_follow_the_noise() -> None:
    noise = keyed_noise(0, range(2000), (1,), CPU)[:, 0]
    correlation = torch.corrcoef(torch.stack([noise, keyed_times(0, range(2000))]))[0, 1]
    assert correlation.abs() < 4 / 2000**0.5


def test_draws_are_the_same_for_ever() -> None:
    """Changing them changes what a resumed run trains on and what a registered detector scores."""
    assert keyed_times(3, [5]).item() == pytest.approx(0.1037920117, abs=1e-7)
    torch.testing.assert_close(keyed_noise(3, [5], (2,), CPU)[0], torch.tensor([-1.2346, -0.6690]), atol=1e-4, rtol=0)


def test_hashes_by_hand() -> None:
    """SplitMix64 of the seed 0 begins with this number, which its authors publish."""
    assert _hashes() == 0
    first = int(_mixed(np.array([0], np.uint64))[0])
    assert first == 0xE220A8397B1DCDAF
    assert int(_hashes(0)[0]) == int(_mixed(np.array([1 ^ first], np.uint64))[0])


def test_signs_are_fair_and_keyed_like_noise() -> None:
    signs = keyed_signs(1, range(500), (20, 20), CPU, 2, 3)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 4 / signs.numel() ** 0.5
    assert (signs[:-1] * signs[1:]).mean().abs() < 4 / signs[1:].numel() ** 0.5
    assert torch.equal(keyed_signs(1, [7], (20, 20), CPU, 2, 3)[0], signs[7])
    assert not torch.equal(keyed_signs(1, [7], (20, 20), CPU, 2, 4)[0], signs[7])
    assert not torch.equal(keyed_signs(1, [7], (20, 20), CPU, 3, 2)[0], signs[7])


def test_generators_take_any_number_of_key_parts() -> None:
    """Different keys must stay different when their parts are long, short or zero."""
    keys = [(1, 2), (1, 2, 0), (1, 2, 1), (2, 1), (0, 1, 2), (1, 2**32), (1, 0, 1), (2**32, 1), (0, 1), (1,), (1, 0)]
    assert len({keyed_generator(CPU, *key).initial_seed() for key in keys}) == len(keys)


def test_content_keys_by_hand() -> None:
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
    digests = [hashlib.sha256(bytes(range(12 * i, 12 * i + 12))).digest() for i in range(2)]
    assert content_keys(images) == [int.from_bytes(digest[:8], "big") >> 2 for digest in digests]


def test_content_keys_follow_the_pixels_only() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = content_keys(images)
    assert len(set(keys)) == 5
    assert all(0 <= key < 2**62 for key in keys)
    assert content_keys(images.flip(0)) == keys[::-1]
    assert content_keys(images.contiguous(memory_format=torch.channels_last)) == keys
    changed = images.clone()
    changed[2, 1, 4, 4] ^= 1
    assert [a == b for a, b in zip(content_keys(changed), keys, strict=True)] == [True, True, False, True, True]
