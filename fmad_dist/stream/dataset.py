"""The images of a converted dataset: the rows of its offset index, and what one of them says."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmad_dist.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import MANIFEST_NAME, Manifest, load_manifest

INDEX_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # <dataset>/<class>/<split>/<path below the split without suffix>
        ("class_name", pa.string()),
        ("split", pa.string()),  # train | val | test
        ("label", pa.int8()),  # 0 normal, 1 anomalous
        ("defect_type", pa.string()),  # "good" for normal images
        ("shard", pa.int32()),  # position in manifest.shards
        ("key", pa.string()),  # WebDataset key inside the tar
        ("image_offset", pa.int64()),  # of the resized rendition; null if only originals are stored
        ("image_size", pa.int64()),
        ("image_sha256", pa.string()),
        ("mask_offset", pa.list_(pa.int64())),
        ("mask_size", pa.list_(pa.int64())),
        ("mask_sha256", pa.list_(pa.string())),
        ("original_offset", pa.int64()),  # of the file as published; null if originals are not stored
        ("original_size", pa.int64()),
        ("original_sha256", pa.string()),
        ("original_mask_offset", pa.list_(pa.int64())),
        ("original_mask_size", pa.list_(pa.int64())),
        ("original_mask_sha256", pa.list_(pa.string())),
        ("mask_ids", pa.list_(pa.list_(pa.int32()))),  # per mask the ids in the source, ascending; none if binary
        ("xyz_offset", pa.int64()),  # null without a point cloud
        ("xyz_size", pa.int64()),
        ("xyz_sha256", pa.string()),
        ("group", pa.string()),  # same for all images of one physical part; "" where the layout does not say
        ("view", pa.string()),  # which camera; "" where the layout does not say
        ("width", pa.int32()),  # of the resized rendition, else of the original
        ("height", pa.int32()),
        ("source", pa.string()),  # path below the source folder
        ("source_sha256", pa.string()),  # of the image file as its owner published it
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range inside a shard and the SHA-256 of those bytes."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset: what it is and where its bytes lie."""

    sample_id: str
    dataset: str
    class_name: str  # without the dataset
    split: str
    label: int
    defect_type: str
    shard: str
    image: Span | None  # the resized rendition
    masks: tuple[Span, ...]
    width: int
    height: int
    original: Span | None = None
    original_masks: tuple[Span, ...] = ()
    mask_ids: tuple[tuple[int, ...], ...] = ()  # per mask; see MaskSemantics
    xyz: Span | None = None  # float32 npy [H, W, 3], (0, 0, 0) where a point is missing
    group: str = ""
    view: str = ""
    source_width: int = 0
    source_height: int = 0


class Dataset:
    """A manifest with its index: the rows are sorted by sample id and addressed by position."""

    def __init__(self, url: str, manifest: Manifest, table: pa.Table) -> None:
        self.url = url
        self.manifest = manifest
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def name(self) -> str:
        return self.manifest.dataset

    @cached_property
    def sample_ids(self) -> Sequence[str]:
        """The id of every row, taken out of the table when it is asked for."""
        return _Strings(self.table.column("sample_id"))

    @cached_property
    def classes(self) -> tuple[np.ndarray, list[str]]:
        """Int64 [N], position of every row's class in the list of `<dataset>/<class>` names that follows, sorted."""
        encoded = self.table.column("class_name").combine_chunks().dictionary_encode()
        names = np.array([f"{self.name}/{name}" for name in encoded.dictionary.to_pylist()], dtype=object)
        order = np.argsort(names)
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        return ranks[encoded.indices.to_numpy()], [str(name) for name in names[order]]

    @cached_property
    def class_names(self) -> np.ndarray:
        """Array of str [N]: `<dataset>/<class>` of every row."""
        numbers, names = self.classes
        return np.array(names, dtype=object)[numbers]

    @cached_property
    def labels(self) -> np.ndarray:
        return self.table.column("label").to_numpy()

    @cached_property
    def stores_native_masks(self) -> bool:
        """Whether the masks of all anomalous images are stored as published, and so at the size of the source."""
        counts = pc.fill_null(pc.list_value_length(self.table.column("original_mask_offset")), 0).to_numpy()
        return bool(np.all(counts[self.labels == 1] > 0))

    def rows(self, split: str) -> np.ndarray:
        """Positions [n] of the rows of a split ("train", "val" or "test"), ascending, as int64."""
        return np.flatnonzero(pc.equal(self.table.column("split"), split).to_numpy(zero_copy_only=False))

    def image_place(self, row: int, original: bool = False) -> tuple[str, Span] | None:
        """Shard and span of a row's resized (or original) image, None if it is not stored; quicker than `sample`."""
        shards, offsets, sizes, digests = self._originals if original else self._images
        if sizes[row] == 0:
            return None
        span = Span(int(offsets[row]), int(sizes[row]), digests[row].as_py())
        return self.manifest.shards[shards[row]].name, span

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.ChunkedArray]:
        return self._places("image")

    @cached_property
    def _originals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.ChunkedArray]:
        return self._places("original")

    def _places(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.ChunkedArray]:
        """Columns of shard, offset, size (0: not stored) and digest."""
        numbers = [self.table.column(c) for c in ("shard", f"{name}_offset", f"{name}_size")]
        shards, offsets, sizes = (pc.fill_null(column, 0).to_numpy() for column in numbers)
        return shards, offsets, sizes, self.table.column(f"{name}_sha256")

    def sample(self, row: int) -> Sample:
        values = self.table.slice(row, 1).to_pylist()[0]
        return Sample(
            sample_id=values["sample_id"],
            dataset=self.name,
            class_name=values["class_name"],
            split=values["split"],
            label=values["label"],
            defect_type=values["defect_type"],
            shard=self.manifest.shards[values["shard"]].name,
            image=_span(values, "image"),
            masks=_spans(values, "mask"),
            width=values["width"],
            height=values["height"],
            original=_span(values, "original"),
            original_masks=_spans(values, "original_mask"),
            mask_ids=tuple(tuple(ids) for ids in values["mask_ids"]),
            xyz=_span(values, "xyz"),
            group=values["group"],
            view=values["view"],
            source_width=values["source_width"],
            source_height=values["source_height"],
        )


class _Strings(Sequence[str]):
    """A column of strings without a Python object for every row."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        return self.column[row].as_py() if not isinstance(row, slice) else self.column[row].to_pylist()

    def __iter__(self) -> Iterator[str]:
        return iter(self.column.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _span(values: dict[str, Any], name: str) -> Span | None:
    found = (values[f"{name}_offset"], values[f"{name}_size"], values[f"{name}_sha256"])
    return None if found[0] is None else Span(*found)


def _spans(values: dict[str, Any], name: str) -> tuple[Span, ...]:
    columns = [values[f"{name}_{field}"] or () for field in ("offset", "size", "sha256")]
    return tuple(Span(*found) for found in zip(*columns, strict=True))


def load_dataset(url: str) -> Dataset:
    """Read the manifest and the offset index at `url` and check the index against its digest.

    Raises:
        UserError: either is missing or was changed after it was written.
    """
    store = Store(url)
    manifest = load_manifest(url)
    data = store.read(manifest.index.name)
    if hashlib.sha256(data).hexdigest() != manifest.index.sha256:
        raise UserError(
            f"{store.url_of(manifest.index.name)}: {len(data)} bytes that do not match the digest in {MANIFEST_NAME}; "
            "the index was truncated or changed, convert the dataset again."
        )
    table = pq.read_table(io.BytesIO(data), schema=INDEX_SCHEMA)
    return Dataset(store.url, manifest, table)


def index_bytes(table: pa.Table) -> bytes:
    """The parquet bytes of index rows with the fields of `INDEX_SCHEMA`, sorted by sample id."""
    buffer = io.BytesIO()
    pq.write_table(table.cast(INDEX_SCHEMA).sort_by("sample_id").combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()
