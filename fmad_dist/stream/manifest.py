"""What a converted dataset consists of: `manifest.json`, an offset index (parquet) and plain WebDataset tars.

Layout below one URL:
    manifest.json             written last; a dataset without it does not exist
    index-<sha>.parquet       one row per image, sorted by sample id, with byte ranges into the shards
    shards/<split>-<number>-<sha>.tar   `<key>.png`, `<key>.mask.png` (or `.mask.0.png`, ...), `<key>.xyz.npy` where
                                        there is a point cloud, and `<key>.json` per image
Names of shards and index carry their own digest, so a re-conversion never changes bytes that an older manifest names.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import Store

FORMAT = "fmad-manifest/2"
MANIFEST_NAME = "manifest.json"

# binary: any value but zero is defect. class_id: the values are defect ids, several per mask are possible.
# channel: one mask per defect, which may overlap; its only value is the id of the defect's type.
MaskSemantics = Literal["binary", "class_id", "channel"]

INDEX_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # <dataset>/<class>/<split>/<path below the split without suffix>
        ("class_name", pa.string()),
        ("split", pa.string()),  # train | val | test
        ("label", pa.int8()),  # 0 normal, 1 anomalous
        ("defect_type", pa.string()),  # "good" for normal images
        ("shard", pa.int32()),  # position in manifest.shards
        ("key", pa.string()),  # WebDataset key inside the tar
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_sha256", pa.string()),
        ("mask_offset", pa.list_(pa.int64())),
        ("mask_size", pa.list_(pa.int64())),
        ("mask_sha256", pa.list_(pa.string())),
        ("mask_ids", pa.list_(pa.list_(pa.int32()))),  # per mask the ids in the source, ascending; none if binary
        ("xyz_offset", pa.int64()),  # null without a point cloud
        ("xyz_size", pa.int64()),
        ("xyz_sha256", pa.string()),
        ("group", pa.string()),  # same for all images of one physical part; "" where the layout does not say
        ("view", pa.string()),  # which camera; "" where the layout does not say
        ("width", pa.int32()),  # of the stored rendition
        ("height", pa.int32()),
        ("source", pa.string()),  # path below the source folder
        ("source_sha256", pa.string()),  # of the image file as its owner published it
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
    ]
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Model):
    """One tar below the manifest's URL."""

    name: str
    split: str
    num_bytes: int
    num_samples: int
    sha256: str


class IndexInfo(_Model):
    name: str
    num_bytes: int
    num_samples: int
    sha256: str


class ClassCounts(_Model):
    """Images per split of one class; `defects` counts the anomalous test images per defect type."""

    train: int = 0
    val: int = 0
    test_normal: int = 0
    test_anomalous: int = 0
    defects: dict[str, int] = {}


class DefectSaturation(_Model):
    """How much of a defect of one type must be found for a full score (MVTec LOCO AD, `defects_config.json`)."""

    defect_name: str
    pixel_value: int  # the id in the masks, 1 to 255
    saturation_threshold: int | float  # pixels of the source image, or a share of the defect's area in (0, 1]
    relative_saturation: bool  # whether the threshold is a share


class Rendition(_Model):
    """How stored pixels were made from the source: squeezed to `size` x `size` and saved as lossless PNG."""

    size: int
    image_resample: str
    mask_resample: str


class Manifest(_Model):
    """Everything about a converted dataset but its rows. `digest` covers all other fields, so it names the content."""

    format: str = FORMAT
    dataset: str
    layout: str
    licence: str
    source: str
    citation: str = ""
    rendition: Rendition
    source_digest: str
    classes: dict[str, ClassCounts]
    mask_semantics: MaskSemantics = "binary"
    saturation: dict[str, list[DefectSaturation]] = {}  # per class, in the order of its owner
    shards: list[ShardInfo]
    index: IndexInfo
    digest: str = ""

    def sealed(self) -> "Manifest":
        """A copy whose `digest` is the SHA-256 of its canonical JSON."""
        body = self.model_dump(exclude={"digest"})
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return self.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})


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
    image: Span
    masks: tuple[Span, ...]
    width: int
    height: int
    mask_ids: tuple[tuple[int, ...], ...] = ()  # per mask; see MaskSemantics
    xyz: Span | None = None  # float32 npy [H, W, 3], (0, 0, 0) where a point is missing
    group: str = ""
    view: str = ""


class Dataset:
    """A manifest with its index: the rows are sorted by sample id and addressed by position."""

    def __init__(self, url: str, manifest: Manifest, table: pa.Table) -> None:
        self.url = url
        self.manifest = manifest
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def name(self) -> str:
        return self.manifest.dataset

    @cached_property
    def sample_ids(self) -> list[str]:
        return self.table.column("sample_id").to_pylist()

    @cached_property
    def class_names(self) -> np.ndarray:
        """Array of str [N]: `<dataset>/<class>` of every row."""
        names = self.table.column("class_name").to_pylist()
        return np.array([f"{self.name}/{name}" for name in names], dtype=object)

    @cached_property
    def labels(self) -> np.ndarray:
        return self.table.column("label").to_numpy()

    def rows(self, split: str) -> np.ndarray:
        """Positions [n] of the rows of a split ("train", "val" or "test"), ascending, as int64."""
        splits = np.array(self.table.column("split").to_pylist(), dtype=object)
        return np.flatnonzero(splits == split)

    def sample(self, row: int) -> Sample:
        values = {name: self.table.column(name)[row].as_py() for name in self.table.column_names}
        spans = zip(values["mask_offset"], values["mask_size"], values["mask_sha256"], strict=True)
        xyz = (values["xyz_offset"], values["xyz_size"], values["xyz_sha256"])
        return Sample(
            sample_id=values["sample_id"],
            dataset=self.name,
            class_name=values["class_name"],
            split=values["split"],
            label=values["label"],
            defect_type=values["defect_type"],
            shard=self.manifest.shards[values["shard"]].name,
            image=Span(values["image_offset"], values["image_size"], values["image_sha256"]),
            masks=tuple(Span(*span) for span in spans),
            width=values["width"],
            height=values["height"],
            mask_ids=tuple(tuple(ids) for ids in values["mask_ids"]),
            xyz=None if xyz[0] is None else Span(*xyz),
            group=values["group"],
            view=values["view"],
        )


def load_manifest(url: str) -> Manifest:
    """Read and check `<url>/manifest.json`.

    Raises:
        UserError: it is missing, not JSON, of another format, or its digest does not match its content.
    """
    store = Store(url)
    where = store.url_of(MANIFEST_NAME)
    if not store.exists(MANIFEST_NAME):
        raise UserError(f"{where}: not found; convert the dataset to this URL first with `fmad data convert`.")
    try:
        raw = json.loads(store.read(MANIFEST_NAME))
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise UserError(f"{where}: format {raw.get('format')!r} is not {FORMAT!r}; convert the dataset again.")
        manifest = Manifest.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{where}: not a readable manifest ({first_line(error)}); convert again.") from None
    if manifest.sealed().digest != manifest.digest:
        raise UserError(f"{where}: its digest does not match its content, so it was edited or cut; convert again.")
    return manifest


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


def index_bytes(rows: list[dict[str, object]]) -> bytes:
    """The parquet bytes of index rows (dicts with the fields of `INDEX_SCHEMA`), sorted by sample id."""
    ordered = sorted(rows, key=lambda row: str(row["sample_id"]))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ordered, schema=INDEX_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
