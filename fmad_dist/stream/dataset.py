"""The images of a converted dataset, as its offset index lists them."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmad_dist.storage import Store
from fmad_dist.stream.index_file import read_index
from fmad_dist.stream.manifest import Manifest, load_manifest

INDEX_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # <dataset>/<class>/<split>/<path below the split without suffix>
        ("class_name", pa.string()),
        ("split", pa.string()),  # train | val | test
        ("label", pa.int8()),  # 0 normal, 1 anomalous
        ("defect_type", pa.string()),  # "good" for normal images
        ("shard", pa.int32()),  # which of manifest.shards
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

GROUP_ROWS = 100_000  # of a parquet index that are decoded at a time
_PLAIN = ("sample_id", "class_name", "split", "label", "defect_type", "group", "view")
_SIZES = ("width", "height", "source_width", "source_height")


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range inside a shard and the SHA-256 of those bytes."""

    offset: int
    size: int
    sha256: str

    @classmethod
    def of(cls, offset: int, data: bytes) -> "Span":
        """The span of bytes that begin at `offset`."""
        return cls(offset, len(data), hashlib.sha256(data).hexdigest())


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
    """A manifest with its offset index. An `index` counts through the images, sorted by sample id.

    A large table is mapped from a file (index_file.py), in parts; reader processes map it again.
    """

    def __init__(self, url: str, manifest: Manifest, table: pa.Table, mapped: bool = False) -> None:
        self.url = url
        self.manifest = manifest
        self.table = table
        self.mapped = mapped

    def __reduce__(self) -> tuple[Any, ...]:
        if self.mapped:
            return _opened, (self.url, self.manifest)
        return Dataset, (self.url, self.manifest, self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def name(self) -> str:
        return self.manifest.dataset

    @property
    def sample_ids(self) -> list[str]:
        """The id of every image, taken out of the table anew: only where there are few."""
        return self.table.column("sample_id").to_pylist()

    def ids_of(self, indices: np.ndarray) -> list[str]:
        """The ids of images, int64 [n]; of a mapped table only the part between the first and the last is read."""
        if not len(indices):
            return []
        first = int(indices.min())
        part = self.table.column("sample_id").slice(first, int(indices.max()) + 1 - first)
        return part.take(indices - first).to_pylist()

    def sample_id(self, index: int) -> str:
        """The id of one image, without a Python object for every other."""
        return self.table.column("sample_id")[index].as_py()

    @cached_property
    def classes(self) -> tuple[np.ndarray, list[str]]:
        """The class number of every image, int32 [N], and the sorted `<dataset>/<class>` names of the numbers."""
        encoded = pc.dictionary_encode(self.table.column("class_name")).combine_chunks()
        names = np.array([f"{self.name}/{name}" for name in encoded.dictionary.to_pylist()], dtype=object)
        order = np.argsort(names)
        ranks = np.empty(len(order), dtype=np.int32)
        ranks[order] = np.arange(len(order))
        return ranks[encoded.indices.to_numpy()], [str(name) for name in names[order]]

    @cached_property
    def class_names(self) -> np.ndarray:
        """Array of str [N]: `<dataset>/<class>` of every image."""
        numbers, names = self.classes
        return np.array(names, dtype=object)[numbers]

    @cached_property
    def labels(self) -> np.ndarray:
        """0 normal, 1 anomalous, of every image, int8 [N]."""
        return self.table.column("label").to_numpy()

    @cached_property
    def stores_native_masks(self) -> bool:
        """Whether the masks of all anomalous images are stored as published, and so at the size of the source."""
        counts = pc.fill_null(pc.list_value_length(self.table.column("original_mask_offset")), 0).to_numpy()
        return bool(np.all(counts[self.labels == 1] > 0))

    def indices(self, split: str) -> np.ndarray:
        """The images of a split ("train", "val" or "test"), ascending, int64 [n]."""
        return np.flatnonzero(pc.equal(self.table.column("split"), split).to_numpy(zero_copy_only=False))

    def image_location(self, index: int, original: bool = False) -> tuple[str, Span] | None:
        """Shard and span of a resized (or original) image, None if it is not stored; quicker than `sample`."""
        name = "original" if original else "image"
        columns = ("shard", f"{name}_offset", f"{name}_size", f"{name}_sha256")
        shard, offset, size, sha256 = (self.table.column(column)[index].as_py() for column in columns)
        return (self.manifest.shards[shard].name, Span(offset, size, sha256)) if size else None

    def sample(self, index: int) -> Sample:
        """All that the offset index says about an image."""
        values = self.table.slice(index, 1).to_pylist()[0]
        return Sample(
            **{name: values[name] for name in _PLAIN + _SIZES},
            dataset=self.name,
            shard=self.manifest.shards[values["shard"]].name,
            image=_span(values, "image"),
            masks=_spans(values, "mask"),
            original=_span(values, "original"),
            original_masks=_spans(values, "original_mask"),
            mask_ids=tuple(tuple(ids) for ids in values["mask_ids"]),
            xyz=_span(values, "xyz"),
        )


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
    return _opened(Store(url).url, load_manifest(url))


def _opened(url: str, manifest: Manifest) -> Dataset:
    return Dataset(url, manifest, *read_index(Store(url), manifest.index, INDEX_SCHEMA))


def index_bytes(table: pa.Table) -> bytes:
    """The parquet bytes of index rows with the fields of `INDEX_SCHEMA`, sorted by sample id."""
    buffer = io.BytesIO()
    rows = table.cast(INDEX_SCHEMA).sort_by("sample_id").combine_chunks()
    pq.write_table(rows, buffer, compression="zstd", row_group_size=GROUP_ROWS)
    return buffer.getvalue()
