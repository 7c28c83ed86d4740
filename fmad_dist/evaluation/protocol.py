"""The evaluation protocol: every choice that changes a number, named and stored beside the numbers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmad_dist.errors import UserError
from fmad_dist.evaluation.presets import BIASED, DEFAULT, PRESETS, Name

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Strips = Annotated[int | None, Field(ge=5)]


class Protocol(BaseModel):
    """How maps become metrics. Two results are comparable only if their protocols are equal.

    The name is that of a preset, which gives the values of all fields that are not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(
        default=DEFAULT, description="names this set of choices in every result; the others are biased, to compare only"
    )
    version: Literal[1] = Field(default=1, description="of the preset")
    map_size: int = Field(default=256, ge=1, description="side of the square anomaly map and mask in pixels")
    mask_rule: Literal["raw != 0, nearest resize to map_size"] = Field(
        default="raw != 0, nearest resize to map_size", description="how a stored mask becomes binary on the map"
    )
    align_corners: bool = Field(default=False, description="whether upsampling puts corner tokens on corner pixels")
    blur_sigma: float = Field(default=0.0, ge=0.0, description="Gaussian blur of the map in map pixels; 0 = none")
    blur_radius: int | None = Field(
        default=None, ge=0, description="cut of the blur's kernel, with zeros around the map; null = 4 sigma, mirrored"
    )
    image_score: Literal["top percent", "maximum", "range and sum over the test set"] = Field(
        default="top percent", description="how a map becomes the score of its image"
    )
    top_percent: float = Field(
        default=1.0, gt=0.0, le=100.0, description="image score = mean of the highest top_percent % of the map's pixels"
    )
    fpr_limit: float = Field(default=0.3, gt=0.0, le=1.0, description="AUPRO integrates over FPR in [0, fpr_limit]")
    more_fpr_limits: tuple[Share, ...] = Field(default=(0.1, 0.05, 0.01), description="further limits of AUPRO")
    spro_limits: tuple[Share, ...] = Field(
        default=(0.05, 0.01, 0.1, 0.3, 1.0), description="limits of AU-sPRO where defects are annotated singly"
    )
    spro_rule: Literal["masks and map at the source's size (au_spro), on the map if not stored (au_spro_map)"] = Field(
        default="masks and map at the source's size (au_spro), on the map if not stored (au_spro_map)",
        description="where saturated overlap is measured; the map is stretched bilinearly",
    )
    connectivity: Literal[4, 8] = Field(default=8, description="neighbours that join mask pixels into one region")
    histogram_bins: int = Field(
        default=2**17, ge=2**10, le=2**24, description="most bins a class's pixel histogram may occupy; more = finer"
    )
    auroc_strips: Strips = Field(default=None, description="pixel AUROC from so many equal widths; null = exact")
    ap_strips: Strips = Field(default=None, description="pixel AP by trapezoids over equal widths; null = exact")
    aupro_strips: Strips = Field(default=None, description="AUPRO from so many equal widths; null = exact")
    aupro_stretched: Strips = Field(
        default=None, description="AUPRO from equal widths, rates below fpr_limit stretched to end at 1; null = exact"
    )
    f1_levels: Strips = Field(default=None, description="pixel F1max over so many equally spaced levels; null = exact")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name", DEFAULT) not in list(PRESETS):
            return values  # and be refused
        return PRESETS[values.get("name", DEFAULT)].values | values

    @property
    def estimated(self) -> set[str]:
        """The pixel metrics that come from thresholds of equal width."""
        numbers = {
            "pixel_auroc": self.auroc_strips,
            "pixel_ap": self.ap_strips,
            "pixel_f1max": self.f1_levels,
            "aupro": self.aupro_strips or self.aupro_stretched,
        }
        return {name for name, number in numbers.items() if number}

    @property
    def biased(self) -> bool:
        """Whether numbers are not those of the metrics' definitions, or depend on the other test images."""
        return bool(self.estimated) or self.needs_map_sum

    @property
    def needs_map_sum(self) -> bool:
        """Whether image scores are made of the ranges and sums of all test images."""
        return self.image_score == "range and sum over the test set"

    @property
    def title(self) -> str:
        """Name and version, what differs from the preset, and whether it is biased."""
        usual = Protocol(name=self.name)
        changed = [f"{key}={value}" for key, value in self.model_dump().items() if value != getattr(usual, key)]
        text = self.name if self.name == DEFAULT else f"{self.name} v{self.version}"
        return text + (f" with {', '.join(changed)}" if changed else "") + (" (biased)" if self.biased else "")

    @property
    def note(self) -> str:
        """What has to be said beside its numbers; empty if nothing."""
        return PRESETS[self.name].note or (BIASED if self.biased else "")


def named_protocol(name: str) -> Protocol:
    """The preset of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"protocol {name!r}: unknown; choose one of {', '.join(PRESETS)}.")
    return Protocol.model_validate({"name": name})


def mask_on_map(raw_masks: Sequence[np.ndarray], map_size: int) -> np.ndarray:
    """The binary mask [map_size, map_size] of an image: the union of its undecoded masks [H, W], any integer dtype.

    Any non-zero value is a defect (some benchmarks store class ids, not 255). No masks give an all-normal
    mask; several masks of an image may differ in size.
    """
    mask = np.zeros((map_size, map_size), dtype=bool)
    for raw in raw_masks:
        binary = Image.fromarray((np.asarray(raw) != 0).astype(np.uint8))
        if binary.size != (map_size, map_size):
            binary = binary.resize((map_size, map_size), Image.Resampling.NEAREST)
        mask |= np.asarray(binary) != 0
    return mask
