"""The evaluation protocol: every choice that changes a number, named and stored beside the numbers."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Protocol(BaseModel):
    """How maps become metrics. Two results are comparable only if their protocols are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="fmad-2026", description="names this set of choices in every result")
    map_size: int = Field(default=256, ge=1, description="side of the square anomaly map and mask in pixels")
    mask_rule: Literal["raw != 0, nearest resize to map_size"] = Field(
        default="raw != 0, nearest resize to map_size", description="how a stored mask becomes binary on the map"
    )
    blur_sigma: float = Field(default=0.0, ge=0.0, description="Gaussian blur of the map in map pixels; 0 = none")
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
