"""What a converted dataset consists of: `manifest.json`, an offset index (`dataset.py`) and plain WebDataset tars.

Layout below one URL:
    manifest.json             written last; a dataset without it does not exist
    index-<sha>.parquet       one row per image, sorted by sample id, with byte ranges into the shards
    shards/<split>-<number>-<sha>.tar   `<key>.png`, `<key>.mask.png` (or `.mask.0.png`, ...) of the resized rendition,
                                        `<key>.original.<suffix>`, `<key>.original.mask.png` (...) of the original one,
                                        `<key>.xyz.npy` where there is a point cloud, and `<key>.json` per image
Names of shards and index carry their own digest, so a re-conversion never changes bytes that an older manifest names.
Foreign tars that were indexed in place keep their names, and hold the original rendition only.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage import Store

FORMAT = "fmad-manifest/3"
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val", "test")
FOREIGN = "webdataset"  # layout of tars that others wrote and that were indexed in place

# binary: any value but zero is defect. class_id: the values are defect ids, several per mask are possible.
# channel: one mask per defect, which may overlap; its only value is the id of the defect's type.
MaskSemantics = Literal["binary", "class_id", "channel"]


def _no_path(name: str) -> str:
    if name in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
        raise ValueError(f"{name!r} is no name of a class")
    return name


# becomes a folder of results, which must not be another one
Name = Annotated[str, AfterValidator(_no_path)]


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
    """The offset index below the manifest's URL."""

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


def count_classes(images: Iterable[tuple[str, str, int, str]]) -> dict[str, ClassCounts]:
    """Images per class and split, and anomalous test images per defect type, sorted by name.

    An image is its class name, split, label and defect type.
    """
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    defects: dict[str, Counter[str]] = defaultdict(Counter)
    for class_name, split, label, defect in images:
        tally[class_name][split if split != "test" else "test_anomalous" if label else "test_normal"] += 1
        if label:
            defects[class_name][defect] += 1
    return {name: ClassCounts(**tally[name], defects=dict(sorted(defects[name].items()))) for name in sorted(tally)}


class DefectSaturation(_Model):
    """How much of a defect of one type must be found for a full score (MVTec LOCO AD, `defects_config.json`)."""

    defect_name: str
    pixel_value: int  # the id in the masks, 1 to 255
    saturation_threshold: int | float  # pixels of the source image, or a share of the defect's area in (0, 1]
    relative_saturation: bool  # whether the threshold is a share


class Rendition(_Model):
    """What is stored of every image: pixels squeezed to `size` x `size` as lossless PNG, the published bytes, or both.

    Without a resized rendition, and for other sizes, readers resize the original by the same rules.
    """

    size: int | None  # None: only originals
    original: bool = False
    image_resample: str
    mask_resample: str

    def keeps_masks(self, semantics: MaskSemantics) -> bool:
        """Whether masks are stored as published.

        They are beside original images, and always where each is a single defect, whose saturated overlap is measured
        at the size of the source (a few KB).
        """
        return self.original or semantics == "channel"


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
    classes: dict[Name, ClassCounts]
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


def load_manifest(url: str) -> Manifest:
    """Read and check `<url>/manifest.json`.

    Raises:
        UserError: it is missing, not JSON, of another format, or its digest does not match its content.
    """
    store = Store(url)
    where = store.url_of(MANIFEST_NAME)
    if not store.exists(MANIFEST_NAME):
        raise UserError(
            f"{where}: not found; convert the dataset to this URL first with `fmad data convert`, or index tars that "
            "others wrote with `fmad data index`."
        )
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
