"""Anomaly maps at the size of the source image, as the official MVTec evaluations take them."""

import numpy as np
from PIL import Image


def at_size(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """The float32 map [S, S] stretched to float32 [height, width] bilinearly, pixel centres on pixel centres.

    Along a side that shrinks it is averaged with the triangle filter.
    """
    if anomaly_map.shape == (height, width):
        return anomaly_map
    return np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))
