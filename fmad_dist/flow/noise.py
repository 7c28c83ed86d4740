"""Random numbers keyed by what they belong to, so that no layout of processes or batches changes them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keyed_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose seed is a hash of the integer key."""
    seed = _seed_sequence(*key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))


def keyed_noise(seed: int, keys: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """N(0, 1) float32 [len(keys), *shape]; row i depends on (seed, keys[i]) alone."""
    rows = [torch.randn(*shape, generator=keyed_generator(device, seed, key), device=device) for key in keys]
    return torch.stack(rows)


def keyed_times(seed: int, keys: Sequence[int]) -> Tensor:
    """t ~ U[0, 1) float32 [len(keys)] on the CPU; entry i depends on (seed, keys[i]) alone."""
    draws = [np.random.Generator(np.random.Philox(_seed_sequence(seed, key, 1))).random() for key in keys]
    return torch.tensor(draws, dtype=torch.float32)


def _seed_sequence(*key: int) -> np.random.SeedSequence:
    """NumPy concatenates the 32-bit words of the parts and pads with zeros, so it takes (1, 2**32) for (1, 0, 1) and
    (1, 2) for (1, 2, 0); two words per part and the number of parts keep every key apart."""
    words = [word for part in key for word in (part & 0xFFFFFFFF, part >> 32)]
    return np.random.SeedSequence([len(key), *words])


def content_keys(images: Tensor) -> list[int]:
    """One key per image from its pixels: uint8 [B, 3, S, S] -> 62-bit integers.

    The same picture gets the same test-time noise whatever it is called and whoever scores it.
    """
    arrays = images.cpu().contiguous().numpy()
    return [int.from_bytes(hashlib.sha256(array.tobytes()).digest()[:8], "big") >> 2 for array in arrays]
