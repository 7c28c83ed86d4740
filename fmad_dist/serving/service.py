"""Answer requests to a served detector: one row per image, with an error for one that cannot be scored."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.detector.detector import Detections, Detector
from fmad_dist.images.codec import image_size, level_png, open_image, square_rgb
from fmad_dist.scoring.calibration import ThresholdName, threshold_name
from fmad_dist.serving.request_images import MAX_ROWS, ImageReader, max_request_pixels

BATCH = 8
COLUMNS = ("score", "normalised", "anomalous", "class_name", "threshold", "error")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The parameters of a request."""

    sensitivity: float = 0.5
    threshold: ThresholdName = "class"
    maps: bool = False

    def __post_init__(self) -> None:
        threshold_name(self.threshold)


class Service:
    """A detector that many threads may ask. One thread of its own decodes and scores, which bounds memory: one image of
    the largest size is decoded at a time however many clients send one, and allocators and thread pools are not
    multiplied by the number of the server's threads. Requests take turns by the image, so a small one waits for no more
    than the image or the batch at hand of each other one."""

    def __init__(self, detector: Detector, reader: ImageReader) -> None:
        self.detector = detector
        self.reader = reader
        # The backbone pads a batch to its chunk, and most requests are one image.
        detector.backbone.chunk = 1 if detector.class_means.device.type == "cpu" else BATCH
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detector")

    def answer(self, images: Sequence[object], options: RequestOptions) -> list[dict[str, Any]]:
        """Return a row with `COLUMNS` per image, in order, and with `map` if `options` ask for it; None = not known.

        Raises:
            UserError: the options are not valid, or there are more than `MAX_ROWS` images.
        """
        if len(images) > MAX_ROWS:
            raise UserError(f"{len(images)} images in one request; send at most {MAX_ROWS} at a time.")
        detector = self.detector.with_threshold(options.threshold).with_sensitivity(options.sensitivity)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH):
            chunk = images[start : start + BATCH]
            rows += self._chunk(detector, chunk, [f"image {start + number}" for number in range(len(chunk))], options)
        return rows

    def _chunk(
        self, detector: Detector, images: Sequence[object], names: Sequence[str], options: RequestOptions
    ) -> list[dict[str, Any]]:
        columns = (*COLUMNS, "map") if options.maps else COLUMNS
        rows: list[dict[str, Any]] = [dict.fromkeys(columns) for _ in images]
        pixels: list[np.ndarray] = []
        readable: list[dict[str, Any]] = []
        for row, image, name in zip(rows, images, names, strict=True):
            try:
                data = self.reader.read(image, name)
                pixels.append(self._worker.submit(_decoded, data, detector.image_size, name).result())
                readable.append(row)
            except UserError as error:
                row["error"] = str(error)
        if readable:
            found = self._worker.submit(_score, detector, pixels).result()
            _fill(readable, found, detector.spec.class_names, options)
        return rows


def _decoded(data: bytes, size: int, name: str) -> np.ndarray:
    """An image of a request as uint8 [size, size, 3].

    Raises:
        UserError: it is none, or has more than `max_request_pixels`.
    """
    width, height = image_size(data, name)
    limit = max_request_pixels()
    if width * height > limit:
        raise UserError(f"{name}: has more than {limit / 1e6:.0f} megapixels, which this server does not take.")
    return np.asarray(square_rgb(open_image(data, name), size, name))


def _score(detector: Detector, pixels: Sequence[np.ndarray]) -> Detections:
    return detector(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())


def _fill(
    rows: Sequence[dict[str, Any]], found: Detections, class_names: Sequence[str], options: RequestOptions
) -> None:
    columns: dict[str, list[Any]] = {
        "score": _finite(found.scores),
        "normalised": _finite(found.normalised),
        "anomalous": found.anomalous.tolist(),
        "class_name": [class_names[number] for number in found.classes.tolist()],
        "threshold": _finite(found.thresholds),
    }
    if options.maps:
        levels = found.relative_maps.cpu().numpy()
        columns["map"] = [base64.b64encode(level_png(one)).decode() for one in levels]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value


def _finite(values: torch.Tensor) -> list[float | None]:
    """The values, None for those that JSON cannot say: an infinite threshold, NaN."""
    return [value if np.isfinite(value) else None for value in values.double().tolist()]
