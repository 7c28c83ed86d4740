"""Whether ONNX Runtime says what torch says, on images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmad_dist.detector import Detector
from fmad_dist.onnx.graph import INPUT, OUTPUTS

BATCH = 5  # of no power of two, so that the last batch differs from the others


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest differences over all images, relative to torch's values."""

    num_images: int
    score: float  # of an image's score
    map: float  # of a pixel, relative to the largest of its map
    num_flipped: int  # images with another decision or class
    num_anomalous: int


def compare(detector: Detector, model: bytes, images: Tensor) -> Agreement:
    """Run both on uint8 RGB images [N, 3, S, S]."""
    session = runtime(model)
    score = pixel = 0.0
    flipped = anomalous = 0
    for batch in images.split(BATCH):
        found = detector(batch)
        theirs = run(session, batch.permute(0, 2, 3, 1).contiguous().numpy())
        ours = found.scores.numpy()
        scale = np.abs(ours) + 1e-3 * np.abs(ours).max()  # a fusion's scores may be near zero
        score = max(score, float((np.abs(theirs["score"] - ours) / scale).max()))
        pixel = max(pixel, _map_error(theirs["map"], found.maps.numpy()))
        differs = (theirs["anomalous"] != found.anomalous.numpy()) | (theirs["class_index"] != found.classes.numpy())
        flipped += int(differs.sum())
        anomalous += int(found.anomalous.sum())
    return Agreement(len(images), score, pixel, flipped, anomalous)


def _map_error(theirs: np.ndarray, ours: np.ndarray) -> float:
    largest = np.abs(ours).max(axis=(1, 2))
    return float((np.abs(theirs - ours).max(axis=(1, 2)) / np.maximum(largest, 1e-12)).max())


def runtime(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name for uint8 RGB [B, S, S, 3]."""
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images}), strict=True))
