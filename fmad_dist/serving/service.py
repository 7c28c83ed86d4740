"""What a served detector answers: one row per image, and a row with an error for one that cannot be scored."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.images import level_png, open_image, square_rgb
from fmad_dist.scoring.calibration import ThresholdName, threshold_name
from fmad_dist.serving.sources import Sources

BATCH = 8
COLUMNS = ("score", "normalised", "anomalous", "class_name", "threshold", "error")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request may ask for."""

    sensitivity: float = 0.5
    threshold: ThresholdName = "class"
    maps: bool = False

    def __post_init__(self) -> None:
        threshold_name(self.threshold)


class Service:
    """A detector that many threads may ask. One thread of its own decodes and scores, which bounds memory: the largest
    image that is let in is held once, however many clients send one, and allocators and thread pools are not
    multiplied by the number of the server's threads."""

    def __init__(self, detector: Detector, sources: Sources) -> None:
        self.detector = detector
        self.sources = sources
        # the backbone pads to its chunk, and requests are small
        detector.backbone.chunk = 1 if detector.class_means.device.type == "cpu" else BATCH
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detector")

    def answer(self, images: Sequence[object], wishes: Wishes) -> list[dict[str, Any]]:
        """A row with `COLUMNS` per image, in order, and with `map` if it is wished for; what is not known is None.

        Raises:
            UserError: the request as a whole makes no sense.
        """
        detector = self.detector.with_threshold(wishes.threshold).with_sensitivity(wishes.sensitivity)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH):
            chunk = images[start : start + BATCH]
            rows += self._chunk(detector, chunk, [f"image {start + number}" for number in range(len(chunk))], wishes)
        return rows

    def _chunk(
        self, detector: Detector, images: Sequence[object], names: Sequence[str], wishes: Wishes
    ) -> list[dict[str, Any]]:
        rows = [_row(wishes) for _ in images]
        files: list[bytes | None] = []
        for row, image, name in zip(rows, images, names, strict=True):
            try:
                files.append(self.sources.read(image, name))
            except UserError as error:
                files.append(None)
                row["error"] = str(error)
        self._worker.submit(_score, detector, files, names, rows, wishes).result()
        return rows


def _row(wishes: Wishes) -> dict[str, Any]:
    return dict.fromkeys((*COLUMNS, "map") if wishes.maps else COLUMNS)


def _score(
    detector: Detector, files: list[bytes | None], names: Sequence[str], rows: list[dict[str, Any]], wishes: Wishes
) -> None:
    """Fill the rows of the files that are there."""
    pixels: list[np.ndarray] = []
    for number, name in enumerate(names):
        data, files[number] = files[number], None  # encoded images can be large too
        if data is None:
            continue
        try:
            pixels.append(np.asarray(square_rgb(open_image(data, name), detector.image_size, name)))
        except UserError as error:
            rows[number]["error"] = str(error)
    readable = [row for row in rows if row["error"] is None]
    if readable:
        found = detector(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
        _fill(readable, found, detector.spec.class_names, wishes)


def _fill(rows: Sequence[dict[str, Any]], found: Detections, class_names: Sequence[str], wishes: Wishes) -> None:
    columns: dict[str, list[Any]] = {
        "score": _finite(found.scores),
        "normalised": _finite(found.normalised),
        "anomalous": found.anomalous.tolist(),
        "class_name": [class_names[number] for number in found.classes.tolist()],
        "threshold": _finite(found.thresholds),
    }
    if wishes.maps:
        levels = found.relative_maps.cpu().numpy()
        columns["map"] = [base64.b64encode(level_png(one)).decode() for one in levels]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value


def _finite(values: torch.Tensor) -> list[float | None]:
    """JSON knows no infinite threshold and no NaN."""
    return [value if np.isfinite(value) else None for value in values.double().tolist()]
