"""Named protocols: what each changes against the default, and what has to be said beside its numbers.

The presets of others reproduce how their public code turns maps into numbers, for comparison with what they published.
Thresholds of equal width make metrics depend on the scale of the scores: one monotone transform, which leaves every
exact metric as it is, can halve such an AUPRO. They are labelled as biased wherever their numbers appear.
"""

from dataclasses import dataclass
from typing import Any, Literal

Name = Literal["fmad-2026", "ader", "dinomaly", "flowad"]
DEFAULT: Name = "fmad-2026"


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
