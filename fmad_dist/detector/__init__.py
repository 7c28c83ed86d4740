"""The detector: everything between pixels and decisions, its files, and what is fitted to normal images.

`Detector` is imported when it is asked for, and timm and torchvision with it: reading a detector.json needs neither.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmad_dist.detector.detector import Detections, Detector

__all__ = ["Detections", "Detector"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fmad_dist.detector import detector

    return getattr(detector, name)
