"""Counting images per class, split and defect, for the manifest and for checking it."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from fmad_dist.stream.manifest import ClassCounts


class Counted(Protocol):
    """What `SourceImage` and `Sample` have in common."""

    @property
    def class_name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def label(self) -> int: ...

    @property
    def defect_type(self) -> str: ...


def count_classes(images: Iterable[Counted]) -> dict[str, ClassCounts]:
    """Images per class and split, and anomalous test images per defect type, sorted by name."""
    tally = Counter((image.class_name, image.split, image.label, image.defect_type) for image in images)
    counts = {}
    for class_name in sorted({key[0] for key in tally}):
        own = {key[1:]: number for key, number in tally.items() if key[0] == class_name}
        defects = {defect: n for (_, label, defect), n in sorted(own.items()) if label}
        counts[class_name] = ClassCounts(
            train=sum(n for (split, _, _), n in own.items() if split == "train"),
            val=sum(n for (split, _, _), n in own.items() if split == "val"),
            test_normal=sum(n for (split, label, _), n in own.items() if split == "test" and not label),
            test_anomalous=sum(n for (split, label, _), n in own.items() if split == "test" and label),
            defects=defects,
        )
    return counts
