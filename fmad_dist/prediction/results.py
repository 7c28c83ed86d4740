"""The files of a prediction: a table with one row per image, sorted by name, and heat maps and overlays."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from fmad_dist.images.codec import level_png, png
from fmad_dist.storage import Store
from fmad_dist.storage.write_behind import WriteBehind

TABLE_NAME, CSV_NAME = "scores.parquet", "scores.csv"
CSV_ROWS = 100_000  # most rows of the copy for people; longer tables are for programs
AS_CALIBRATED = 0.5  # sensitivity in [0, 1]
NORMAL, ANOMALOUS, UNREADABLE = "normal", "anomalous", "unreadable"

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("score", pa.float32()),  # higher is more anomalous; null if unreadable
        ("normalised", pa.float32()),  # in [0, 1], 0.5 at the calibrated threshold; NaN while uncalibrated
        ("threshold", pa.float32()),  # of the decision, for the inferred class; inf while uncalibrated
        ("decision", pa.string()),  # normal, anomalous or unreadable
        ("class", pa.string()),  # inferred, <dataset>/<class>
        ("error", pa.string()),  # why it is unreadable, else ""
        ("url", pa.string()),  # of the file that holds it
        ("start", pa.int64()),  # of its bytes in that file
        ("num_bytes", pa.int64()),
    ]
)
MAPS, OVERLAYS = "maps", "overlays"
LONGEST_NAME = 255  # bytes that file systems take for one part of a path
COLD, HOT = 0.4, 0.9  # levels where heat begins to be seen and where it is hottest; 0.5 is the threshold


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What a prediction found; `first_error` is that of the first unreadable image, "" if there is none."""

    num_images: int
    num_anomalous: int
    num_unreadable: int
    first_error: str


def summarise(table: pa.Table) -> PredictionSummary:
    unreadable = table.filter(pc.equal(table["decision"], UNREADABLE))
    return PredictionSummary(
        num_images=table.num_rows,
        num_anomalous=pc.sum(pc.equal(table["decision"], ANOMALOUS)).as_py() or 0,
        num_unreadable=unreadable.num_rows,
        first_error=unreadable["error"][0].as_py() if unreadable.num_rows else "",
    )


def table_of(rows: Sequence[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([table_of([]), *tables])


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def csv_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


class Pictures(StrEnum):
    """Of which images pictures are written."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"


class PictureFiles:
    """Writes `maps/<image>.png`, 16-bit grey, and `overlays/<image>.png` below `out`, in threads beside the scoring.

    Every method raises UserError when the storage refuses, also for an earlier file.
    """

    def __init__(self, out: str, wanted: Pictures) -> None:
        self.store = Store(out)
        self.wanted = wanted
        self._writes = WriteBehind()

    def add(self, name: str, pixels: np.ndarray, levels: np.ndarray, anomalous: bool) -> None:
        """`pixels` uint8 [S, S, 3]; `levels` float32 [M, M], the map on the normalised scale."""
        if self.wanted is Pictures.NONE or (self.wanted is Pictures.ANOMALOUS and not anomalous):
            return
        self._writes.put(lambda: self._write(name, pixels, levels))

    def wait(self) -> None:
        """Until everything that was added is stored."""
        self._writes.wait()

    def _write(self, name: str, pixels: np.ndarray, levels: np.ndarray) -> None:
        self.store.write(picture_name(MAPS, name), level_png(levels))
        self.store.write(picture_name(OVERLAYS, name), png(overlay(pixels, levels)))


def picture_name(folder: str, image: str) -> str:
    """The file in `folder` of the picture of an image: `<folder>/<image>.png`. A part of the name that is longer than
    file systems take ends in a digest instead."""
    return "/".join([folder, *map(_shortened, f"{image}.png".split("/"))])


def _shortened(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= LONGEST_NAME:
        return part
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:16]}{'.png' if part.endswith('.png') else ''}"
    return encoded[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def overlay(pixels: np.ndarray, levels: np.ndarray) -> Image.Image:
    """The image [S, S, 3] under the heat of its map [M, M]."""
    size = pixels.shape[0]
    heat = np.asarray(Image.fromarray(levels.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    coloured = heat_colours(heat)
    alpha = coloured[..., 3:]
    return Image.fromarray((pixels * (1 - alpha) + coloured[..., :3] * 255.0 * alpha).round().astype(np.uint8))


def heat_colours(levels: np.ndarray) -> np.ndarray:
    """RGBA in [0, 1], [M, M, 4], of a map on the normalised scale; transparent up to COLD, and where it is NaN."""
    from matplotlib import colormaps

    heat = np.nan_to_num(np.clip((levels - COLD) / (HOT - COLD), 0.0, 1.0))
    colours = colormaps["inferno"](heat)
    colours[..., 3] = 0.75 * np.sqrt(heat)
    return colours
