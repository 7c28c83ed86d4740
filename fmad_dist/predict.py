"""Score images that nobody has labelled: a folder at any URL in, a table, heat maps and overlays out."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.images import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.progress import Progress
from fmad_dist.storage import Store

BATCH = 8
COLUMNS = ("image", "score", "threshold", "decision", "class", "error")


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What a prediction run did."""

    num_images: int
    num_anomalous: int
    unreadable: tuple[str, ...]


def predict(detector: Detector, source: str, out: str) -> PredictionSummary:
    """Score all images below `source`; writes `scores.csv`, `maps/<image>.png` and `overlays/<image>.png` to `out`.

    Heat maps are 16-bit grey: 32768 is the threshold of the image's inferred class. Unreadable files get a row with
    their error and do not stop the others.

    Raises:
        UserError: there are no images, the source cannot be read or the target cannot be written.
    """
    images, target = Store(source), Store(out)
    if type(images.fs) is type(target.fs) and f"{target.path()}/".startswith(f"{images.path()}/"):
        raise UserError(f"{out}: lies inside the source {source}; choose an --out outside it.")
    names = [name for name in images.list() if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise UserError(f"{source}: no images found ({', '.join(IMAGE_SUFFIXES)}); check the path.")
    rows: list[dict[str, object]] = []
    unreadable: list[str] = []
    with Progress("predict", len(names)) as progress:
        for chunk in _chunks(names, BATCH):
            good, pixels = _read(images, chunk, detector.image_size, rows, unreadable)
            if good:
                found = detector(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
                for position, name in enumerate(good):
                    rows.append(_row(detector, name, found, position))
                    _write_pictures(target, name, pixels[position], found, position)
            progress.advance(len(chunk))
    rows.sort(key=lambda row: str(row["image"]))
    target.write("scores.csv", _csv(rows))
    num_anomalous = sum(row["decision"] == "anomalous" for row in rows)
    return PredictionSummary(len(names), num_anomalous, tuple(unreadable))


def _read(
    store: Store, names: Sequence[str], size: int, rows: list[dict[str, object]], unreadable: list[str]
) -> tuple[list[str], list[np.ndarray]]:
    good, pixels = [], []
    for name in names:
        try:
            image = open_image(store.read(name), store.url_of(name))
            pixels.append(np.asarray(square_rgb(image, size, store.url_of(name))))
            good.append(name)
        except UserError as error:
            rows.append({"image": name, "decision": "unreadable", "error": str(error)})
            unreadable.append(str(error))
    return good, pixels


def _row(detector: Detector, name: str, found: Detections, position: int) -> dict[str, object]:
    return {
        "image": name,
        "score": f"{found.scores[position].item():.6g}",
        "threshold": f"{found.thresholds[position].item():.6g}",
        "decision": "anomalous" if found.anomalous[position].item() else "normal",
        "class": detector.spec.class_names[int(found.classes[position])],
        "error": "",
    }


def _write_pictures(target: Store, name: str, pixels: np.ndarray, found: Detections, position: int) -> None:
    relative = found.maps[position].cpu().numpy() / found.thresholds[position].item()  # 1 = threshold
    grey = np.clip(relative * 32768, 0, 65535).astype(np.uint16)
    target.write(f"maps/{name}.png", _png(Image.fromarray(grey)))
    target.write(f"overlays/{name}.png", _png(overlay(pixels, relative)))


def overlay(pixels: np.ndarray, relative: np.ndarray) -> Image.Image:
    """The image [S, S, 3] with heat from half the threshold on, full colour at twice; `relative` [M, M]."""
    from matplotlib import colormaps

    size = pixels.shape[0]
    heat = np.asarray(Image.fromarray(relative.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    level = np.clip((heat - 0.5) / 1.5, 0.0, 1.0)
    colour = colormaps["inferno"](level)[..., :3] * 255.0
    alpha = (0.75 * np.sqrt(level))[..., None]
    return Image.fromarray((pixels * (1 - alpha) + colour * alpha).round().astype(np.uint8))


def _csv(rows: Sequence[dict[str, object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
