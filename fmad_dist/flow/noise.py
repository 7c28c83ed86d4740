"""Random numbers seeded by what they belong to, so that no layout of processes or batches changes them."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def keyed_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose seed is a hash of the integer key."""
    return torch.Generator(device).manual_seed(_generator_seeds(*key)[0])


def keyed_noise(seed: int, keys: Sequence[int], shape: Sequence[int], device: torch.device, *more: int) -> Tensor:
    """N(0, 1) float32 [len(keys), *shape]; row i depends on (seed, keys[i], *more) alone."""
    rows = torch.empty(len(keys), *shape, device=device)
    for row, generator in zip(rows, _generators(device, seed, keys, *more), strict=True):
        row.normal_(generator=generator)
    return rows


def keyed_signs(seed: int, keys: Sequence[int], shape: Sequence[int], device: torch.device, *more: int) -> Tensor:
    """-1 and 1 with equal chance, float32 [len(keys), *shape]; row i depends on (seed, keys[i], *more) alone."""
    rows = torch.empty(len(keys), *shape, device=device)
    for row, generator in zip(rows, _generators(device, seed, keys, *more), strict=True):
        row.random_(0, 2, generator=generator)
    return 2 * rows - 1


def keyed_times(seed: int, keys: Sequence[int]) -> Tensor:
    """t ~ U[0, 1) float32 [len(keys)] on the CPU; entry i depends on (seed, keys[i]) alone."""
    bits = _hashes(seed, keys, 1) >> np.uint64(40)  # as many as float32 can hold
    return torch.from_numpy(bits.astype(np.float32) * np.float32(2.0**-24))


def _generators(device: torch.device, seed: int, keys: Sequence[int], *more: int) -> Iterator[torch.Generator]:
    """One generator, seeded anew for each key: creating one per image is slow on a GPU."""
    generator = torch.Generator(device)
    for own in _generator_seeds(seed, keys, *more):
        yield generator.manual_seed(own)


def _generator_seeds(*key: int | Sequence[int]) -> list[int]:
    return (_hashes(*key) >> np.uint64(1)).tolist()


def _hashes(*key: int | Sequence[int]) -> np.ndarray:
    """uint64 [n], one per row of the key, whose parts are integers in [0, 2^64) or n of them.

    Every part goes through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) on top of the parts before it, and
    so does their number: keys of other parts, another order or another length have other hashes.
    """
    state = np.array([len(key)], np.uint64)
    for part in key:
        state = _mixed(state ^ _mixed(np.atleast_1d(np.asarray(part, np.uint64))))
    return state


def _mixed(words: np.ndarray) -> np.ndarray:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def content_keys(images: Tensor) -> list[int]:
    """One key per image from its pixels: uint8 [B, 3, S, S] -> 62-bit integers.

    Equal pictures get equal test-time noise, whatever their names and the process that scores them.
    """
    arrays = images.cpu().contiguous().numpy()
    return [int.from_bytes(hashlib.sha256(array.tobytes()).digest()[:8], "big") >> 2 for array in arrays]
