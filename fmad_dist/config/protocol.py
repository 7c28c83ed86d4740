"""The evaluation protocol: every choice that changes a number, named and stored beside the numbers; and its presets.

The presets of others reproduce how their public code turns maps into numbers, for comparison with what they published.
Thresholds of equal width make metrics depend on the scale of the scores: one monotone transform, which leaves every
exact metric as it is, can halve such an AUPRO. They are labelled as biased wherever their numbers appear.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmad_dist.base.errors import UserError

Name = Literal["fmad-2026", "ader", "dinomaly", "flowad"]
DEFAULT: Name = "fmad-2026"
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Strips = Annotated[int | None, Field(ge=5)]


@dataclass(frozen=True, slots=True)
class Preset:
    """`values` of the protocol's fields; `note` says what is biased and what is not reproduced, empty if nothing."""

    values: dict[str, Any]
    note: str = ""


BIASED = "Biased estimates, for comparison with published numbers only."
PRESETS: dict[Name, Preset] = {
    DEFAULT: Preset({}),
    "ader": Preset(
        {
            "align_corners": True,
            "blur_sigma": 4.0,
            "image_score": "maximum",
            "more_fpr_limits": (),
            "auroc_strips": 50,
            "ap_strips": 50,
            "aupro_strips": 50,
            "f1_levels": 21,
        },
        BIASED
        + " Pixel AUROC, AP and AUPRO come from 50 strips of equal width between the lowest and the highest score of"
        " a class, AP by trapezoids, which interpolate between precisions; pixel F1max comes from 21 levels. As "
        "in the public code of ADer's benchmark (util/metric.py with adeval). Not reproduced: masks resized "
        "bilinearly and cut at 0.5 (here nearest), images labelled by their resized masks, training on validation"
        " images, the epoch chosen on test images.",
    ),
    "dinomaly": Preset(
        {
            "align_corners": True,
            "blur_sigma": 4.0,
            "blur_radius": 2,
            "more_fpr_limits": (),
            "aupro_stretched": 200,
        },
        BIASED
        + " AUPRO comes from 200 thresholds of equal width, whose false positive rates below 0.3 are stretched to "
        "end at 1; the blur is a 5 x 5 cut of sigma 4 with zeros around the map. As in Dinomaly's public code "
        "(evaluation_batch, compute_pro); other metrics are exact. Not reproduced: the centre crop of 392 of 448 "
        "pixels, which leaves defects at the border out, and masks resized bilinearly and cut at 0 (here "
        "nearest), of which its authors say that they make pixel AP and F1max higher than they should be.",
    ),
    "flowad": Preset(
        {
            "image_score": "range and sum over the test set",
            "more_fpr_limits": (),
            "auroc_strips": 1000,
            "aupro_strips": 1000,
            "f1_levels": 1001,
        },
        BIASED + " Pixel AUROC and AUPRO come from 1000 strips of equal width, pixel F1max from 1001 levels; the image "
        "score is the map's range plus its sum, each scaled to [0, 1] over all test images of the dataset, so it "
        "is not a score of that image alone. As in FlowAD's public code (diff+sum, adeval); pixel AP is exact. "
        "Not reproduced: the checkpoint chosen on test images; its inversion has norms where fmad has their "
        "squares, which strips notice.",
    ),
}


class Protocol(BaseModel):
    """How maps become metrics. Two results are comparable only if their protocols are equal.

    The name is that of a preset, which gives the values of all fields that are not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(
        DEFAULT, description="names this set of choices in every result; the others are biased, to compare only"
    )
    version: Literal[1] = Field(1, description="of the preset")
    map_size: int = Field(256, ge=1, description="side of the square anomaly map and mask in pixels")
    mask_rule: Literal["raw != 0, nearest resize to map_size"] = Field(
        "raw != 0, nearest resize to map_size", description="how a stored mask becomes binary on the map"
    )
    align_corners: bool = Field(False, description="whether upsampling puts corner tokens on corner pixels")
    blur_sigma: float = Field(0.0, ge=0.0, description="Gaussian blur of the map in map pixels; 0 = none")
    blur_radius: int | None = Field(
        None, ge=0, description="cut of the blur's kernel, with zeros around the map; null = 4 sigma, mirrored"
    )
    image_score: Literal["top percent", "maximum", "range and sum over the test set"] = Field(
        "top percent", description="how a map becomes the score of its image"
    )
    top_percent: float = Field(
        1.0, gt=0.0, le=100.0, description="image score = mean of the highest top_percent % of the map's pixels"
    )
    fpr_limit: float = Field(0.3, gt=0.0, le=1.0, description="AUPRO integrates over FPR in [0, fpr_limit]")
    more_fpr_limits: tuple[Share, ...] = Field((0.1, 0.05, 0.01), description="further limits of AUPRO")
    spro_limits: tuple[Share, ...] = Field(
        (0.05, 0.01, 0.1, 0.3, 1.0), description="limits of AU-sPRO where defects are annotated singly"
    )
    spro_rule: Literal["masks and map at the source's size (au_spro), on the map if not stored (au_spro_map)"] = Field(
        "masks and map at the source's size (au_spro), on the map if not stored (au_spro_map)",
        description="where saturated overlap is measured; the map is stretched bilinearly",
    )
    connectivity: Literal[4, 8] = Field(8, description="neighbours that join mask pixels into one region")
    histogram_bins: int = Field(
        2**17, ge=2**10, le=2**24, description="most bins a class's pixel histogram may occupy; more = finer"
    )
    auroc_strips: Strips = Field(None, description="pixel AUROC from so many equal widths; null = exact")
    ap_strips: Strips = Field(None, description="pixel AP by trapezoids over equal widths; null = exact")
    aupro_strips: Strips = Field(None, description="AUPRO from so many equal widths; null = exact")
    aupro_stretched: Strips = Field(
        None, description="AUPRO from equal widths, rates below fpr_limit stretched to end at 1; null = exact"
    )
    f1_levels: Strips = Field(None, description="pixel F1max over so many equally spaced levels; null = exact")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name", DEFAULT) not in list(PRESETS):
            return values  # validation refuses it
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
        """A sentence that belongs beside its numbers, empty for an unbiased protocol."""
        return PRESETS[self.name].note or (BIASED if self.biased else "")


def named_protocol(name: str) -> Protocol:
    """The preset of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"protocol {name!r}: unknown; choose one of {', '.join(PRESETS)}.")
    return Protocol.model_validate({"name": name})
