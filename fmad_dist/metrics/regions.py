"""Defect regions and channels as integer weights per pixel, so that overlaps add up exactly over any order.

Regions are measured on the map; single defects at the size of the source image where their masks are stored so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

REGION_UNIT = 2**40  # fixed-point weight of one whole region


@dataclass(frozen=True, slots=True)
class Regions:
    """Weights int64 [n] of the mask's true pixels, row-major, and the number of regions, each of which weighs
    REGION_UNIT in total, up to the rounding of a division."""

    weights: np.ndarray
    num_regions: int


def label_regions(mask: np.ndarray, connectivity: int) -> Regions:
    """Split a bool mask [H, W] into its 4- or 8-connected regions.

    Every region carries the same total weight, whatever its size: per-region overlap (Bergmann et al., MVTec AD, 2021)
    is the mean over regions of the detected fraction, which is the detected weight over the total weight. The floor of
    the division loses less than one part in 2^20 for regions below 2^20 pixels.
    """
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    labels, num_regions = ndimage.label(mask, structure=structure)
    of_pixel = labels[mask]
    sizes = np.bincount(of_pixel, minlength=num_regions + 1)
    weights = REGION_UNIT // np.maximum(sizes, 1)
    return Regions(weights[of_pixel].astype(np.int64), int(num_regions))


@dataclass(frozen=True, slots=True)
class Channel:
    """One annotated defect of an image: its bool mask [H, W], not empty, and the pixels that must be found for a full
    score, 1 <= `saturation` <= its area."""

    mask: np.ndarray
    saturation: int


@dataclass(frozen=True, slots=True)
class SingleDefects:
    """The channels of an image whose dataset annotates every defect singly, none if the image is normal, and the size
    of their masks: that of the source image if `native`, else the protocol's map."""

    channels: tuple[Channel, ...]
    height: int
    width: int
    native: bool

    def union(self) -> np.ndarray:
        """Bool [H, W]: the pixels of all channels."""
        union = np.zeros((self.height, self.width), dtype=bool)
        for channel in self.channels:
            union |= channel.mask
        return union


def at_size(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """The float32 map [S, S] stretched to float32 [height, width] bilinearly, pixel centres on pixel centres, as the
    official MVTec evaluations do. Along a side that shrinks it is averaged with the triangle filter.
    """
    if anomaly_map.shape == (height, width):
        return anomaly_map
    return np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))


def saturated_regions(scores: np.ndarray, mask: np.ndarray, channels: Sequence[Channel]) -> Regions:
    """The channels, whose union is the bool `mask` [H, W], as regions: the weights at or above any threshold add up to
    the sum over channels of min(TP / saturation, 1), Bergmann et al.'s saturated overlap (MVTec LOCO AD, 2022).

    A channel's `saturation` highest scores weigh the same and the others nothing: as the overlap of a channel depends
    on its own scores only, saturating needs no threshold (ours). Channels may overlap.
    """
    weights = np.zeros(mask.size, dtype=np.int64)
    for channel in channels:
        inside = np.flatnonzero(channel.mask)
        own = scores.ravel()[inside]
        highest = np.argpartition(own, own.size - channel.saturation)[own.size - channel.saturation :]
        weights[inside[highest]] += REGION_UNIT // channel.saturation  # of tied scores any: they share a bin
    return Regions(weights[mask.ravel()], len(channels))
