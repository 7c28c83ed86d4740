"""Nearest resizing: the one choice of source pixels that masks and point clouds share."""

import numpy as np


def cell_centres(num_source: int, size: int) -> np.ndarray:
    """Source index under the centre of each of `size` cells, int64 [size]."""
    return ((2 * np.arange(size) + 1) * num_source) // (2 * size)
