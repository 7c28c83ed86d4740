"""What is to be said about files that are taken as they are: counted by kind, with the first file of each kind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fmad_dist.images.masks import MaskDoubt

POOLED = "pooled"
SHALLOW = "shallow"
DOTTED = "dotted"
OTHER_FILES = "other files"
NO_IMAGE = "no image"
# to be looked at before training, in this order
IMPORTANT = (MaskDoubt.COVERAGE, MaskDoubt.SHADES, MaskDoubt.LOSSY, SHALLOW, DOTTED, NO_IMAGE, OTHER_FILES)
_SAID: Mapping[str, str] = {
    POOLED: "{} mask(s) max-pooled, because nearest resizing would have lost them",
    MaskDoubt.LOSSY: "{} mask(s) in JPEG or lossy WebP, which blur edges, cut at half; export them as PNG",
    MaskDoubt.SHADES: "{} mask(s) with several values besides 0 (blurred edges, or no mask at all?); every value but 0 "
    "is defect, so save them with two values",
    MaskDoubt.COVERAGE: "{} mask(s) marking more than half of the picture (inverted, or a background that is not 0?); "
    "every value but 0 is defect",
    SHALLOW: "{} picture(s) of 16 bits without a value above 4095, of which at most 17 grey levels are left; multiply "
    "their values by 16, or save them with 8 bits",
    DOTTED: "{} picture(s) left out: WebDataset takes what follows the first dot of a name for its kind; write _ for "
    "the other dots",
    NO_IMAGE: "{} sample(s) left out, without an image",
    OTHER_FILES: "{} file(s) left out, of a kind that is not read",
}


@dataclass
class Remarks:
    """How many files each kind of remark is about, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str, number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number
        self.first.setdefault(kind, where)

    @classmethod
    def joined(cls, parts: Iterable["Remarks"]) -> "Remarks":
        """All remarks of several parts of one job, in their order."""
        whole = cls()
        for part in parts:
            for kind, number in part.counts.items():
                whole.add(kind, part.first[kind], number)
        return whole

    def lines(self) -> list[str]:
        """One sentence per kind, the important ones first and marked as warnings."""
        warnings = [f"warning: {sentence} (first: {first})" for first, sentence in self.warnings()]
        return warnings + ([self._sentence(POOLED)] if POOLED in self.counts else [])

    def warnings(self) -> list[tuple[str, str]]:
        """The first file and a sentence for every kind of remark that is to be looked at before training."""
        return [(self.first[kind], self._sentence(kind)) for kind in IMPORTANT if kind in self.counts]

    def _sentence(self, kind: str) -> str:
        number = self.counts[kind]
        return _SAID[kind].format(number).replace("(s)", "" if number == 1 else "s")
