"""What tests of detectors compare."""

import torch
from torch import Tensor

from fmad_dist.detector.detector import Detections
from tests.support.small_parts import SIDE

INFINITE = float("inf")


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def assert_equal(one: Detections, other: Detections) -> None:
    for name in ("scores", "maps", "classes", "thresholds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
