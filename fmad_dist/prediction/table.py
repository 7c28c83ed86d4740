"""The table of a prediction: one row per image, sorted by name."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

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
