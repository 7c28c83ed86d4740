"""Tars that others wrote, in WebDataset's form: an index and a manifest beside them, without touching them.

Every tar is read once, as a stream, so memory is bounded by its largest member. A sample is what WebDataset takes for
one: the members of a tar whose names agree up to the first dot of the last part. Its image is stored as published, and
readers resize it by the rules of a conversion.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa

from data_tools.conversion.records import LINE_COLUMN, ROW_SCHEMA, span_columns, spans_columns
from data_tools.conversion.rendition import stored_form
from data_tools.conversion.sealing import Existing, unsealed_manifest
from data_tools.readers.source_tree import check_dataset_name
from data_tools.remarks import DOTTED, NO_IMAGE, OTHER_FILES, Remarks
from fmad_dist.base.errors import Problems, UserError, check_utf8, first_line
from fmad_dist.images.codec import IMAGE_SUFFIXES, image_size
from fmad_dist.images.masks import doubts_about, marked_pixels, raw_mask
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import Span
from fmad_dist.stream.foreign_tars import (
    Facts,
    TarStream,
    mask_number,
    refuse_packed,
    refuse_unpaired_mask,
    regular_files,
    split_of_tar,
)
from fmad_dist.stream.manifest import FOREIGN, SPLITS, Manifest, ShardInfo, count_classes


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for samples that do not say it themselves."""

    dataset: str
    split: str | None = None  # None: by the tar's name, else train
    class_name: str = "all"
    licence: str = "unknown"

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        if self.class_name in ("", ".", ".."):
            raise UserError(f"--class {self.class_name!r}: give a name.")
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"--split {self.split!r}: give train, val or test.")


@dataclass(slots=True)
class _Group:
    """The members of one sample while its tar is read."""

    key: str
    image: Span | None = None
    image_name: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    masks: dict[tuple[int, str], Span] = field(default_factory=dict)  # those that mark something
    mask_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of all, by member
    has_facts: bool = False  # whether a json or cls member was met
    facts: Facts = field(default_factory=Facts)
    class_text: str = ""


def index_tars(
    url: str,
    defaults: Defaults,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda num_bytes: None,
    remarks: Remarks | None = None,
) -> tuple[Manifest, bool]:
    """Index all tars below `url`; returns the manifest and whether it was written.

    A second run with the same options writes nothing if the tars still have their sizes. Their bytes are not read
    again; `fmad data lint` does that. `advance` is called with the bytes of every tar that was read; `remarks` are
    given what was left out and what is doubtful.

    Raises:
        UserError: there are no tars, one cannot be indexed, or another dataset has its manifest here.
    """
    store = Store(url)
    names = _tar_names(store)
    existing = Existing.at(store)
    existing.check_owner(defaults.dataset, overwrite)
    if existing.manifest is not None and existing.manifest.layout != FOREIGN and not overwrite:
        raise UserError(
            f"{url}: was converted by fmad and has an index; give --overwrite to index its tars as foreign."
        )
    recipe = hashlib.sha256(json.dumps([FOREIGN, repr(defaults)]).encode()).hexdigest()
    if not overwrite and existing.manifest is not None and existing.manifest.source_digest.startswith(recipe[:32]):
        sizes = {name: store.size(name) for name in names}
        if sizes == {shard.name: shard.num_bytes for shard in existing.manifest.shards} and existing.is_complete():
            return existing.manifest, False
    shards: list[ShardInfo] = []
    tables: list[pa.Table] = []
    for index, name in enumerate(names):
        shard, rows = _read_tar(store, name, index, defaults, Remarks() if remarks is None else remarks)
        shards.append(shard)
        tables.append(pa.Table.from_pylist(rows, schema=ROW_SCHEMA))
        advance(shard.num_bytes)
    rows = pa.concat_tables(tables)
    _check_rows(store, rows)
    content = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return existing.seal(_skeleton(defaults, shards, rows), rows, recipe[:32] + content[:32], overwrite), True


def _tar_names(store: Store) -> list[str]:
    names = store.list()
    refuse_packed(names, store)
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise UserError(f"{store.url}: no .tar files here; give the folder that holds them.")
    return tars


def _read_tar(
    store: Store, name: str, index: int, defaults: Defaults, remarks: Remarks
) -> tuple[ShardInfo, list[dict[str, object]]]:
    where = store.url_of(name)
    groups: dict[str, _Group] = {}
    digest = hashlib.sha256()
    with closing(TarStream(store, name, digest.update)) as stream:
        try:
            for member, offset, data in _members(stream):
                _assign(groups, member, offset, data, where, remarks)
        except tarfile.TarError as error:
            raise UserError(f"{where}: not a plain and complete tar ({first_line(error)}); replace it.") from None
    split = defaults.split or split_of_tar(name) or "train"
    samples = [group for group in groups.values() if group.image is not None]
    without = next((group for group in groups.values() if group.image is None and group.masks), None)
    if without is not None:
        raise UserError(f"{where}: {without.key} has a mask but no image; give both the same name up to the first dot.")
    for group in groups.values():
        if group.image is None and group.has_facts:
            remarks.add(NO_IMAGE, f"{where} {group.key}")
    with Problems() as problems:
        rows = []
        for group in samples:
            with problems.noted():
                rows.append(_row(group, index, split, defaults, where))
    sha256, num_bytes = digest.hexdigest(), stream.num_bytes
    return ShardInfo(name=name, split=split, num_bytes=num_bytes, num_samples=len(rows), sha256=sha256), rows


def _members(stream: TarStream) -> Iterator[tuple[str, int, bytes]]:
    """Name, offset of the content and content of every regular file, in order, without seeking; reads to the end.

    Raises:
        tarfile.TarError: the stream is no tar, is cut, or has something that byte ranges cannot address.
    """
    with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]  # read() is all it uses
        for member in regular_files(tar):
            extracted = tar.extractfile(member)
            data = extracted.read() if extracted else b""
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
            yield member.name.removeprefix("./"), member.offset_data, data
        if not stream.is_whole(tar.offset):
            raise tarfile.ReadError(f"it is cut or damaged at byte {tar.offset}")


def _assign(groups: dict[str, _Group], member: str, offset: int, data: bytes, where: str, remarks: Remarks) -> None:
    """Note what a member is for its sample; files of other kinds are counted."""
    check_utf8(f"{where} {member}")
    folder, _, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem:
        return  # hidden
    key = f"{folder}/{stem}".lstrip("/")
    group = groups.setdefault(key, _Group(key))
    extension = extension.lower()
    number = mask_number(extension)
    if number is not None:
        raw = raw_mask(data, f"{where} {member}")
        for doubt in doubts_about(data, raw):
            remarks.add(doubt, f"{where} {member}")
        group.mask_sizes[member] = (raw.shape[1], raw.shape[0])
        if marked_pixels(raw).any():
            group.masks[number, extension] = Span.of(offset, data)
    elif f".{extension}" in IMAGE_SUFFIXES:
        refuse_unpaired_mask(member, where)
        if group.image is not None:
            raise UserError(f"{where}: {key} has two images ({group.image_name} and {member}); keep one of them.")
        group.size = image_size(data, f"{where} {member}")
        group.image, group.image_name = Span.of(offset, data), member
    elif base.lower().endswith(IMAGE_SUFFIXES):
        remarks.add(DOTTED, f"{where} {member}")
    elif extension == "json":
        group.has_facts = True
        group.facts = Facts.parse(data, f"{where} {member}")
    elif extension in ("cls", "cls.txt"):
        group.has_facts = True
        group.class_text = data.decode(errors="replace").strip()
    else:
        remarks.add(OTHER_FILES, f"{where} {member}")


def _row(group: _Group, shard: int, split: str, defaults: Defaults, where: str) -> dict[str, object]:
    facts, image = group.facts, group.image
    assert image is not None
    folder = group.key.rpartition("/")[0]
    class_name = (facts.class_name or group.class_text or folder or defaults.class_name).replace("/", "_")
    if class_name in (".", ".."):
        raise UserError(f"{where}: the class of {group.key} is {class_name!r}; give it a name.")
    for member, size in group.mask_sizes.items():
        if size != group.size:
            mask, own = (f"{w}x{h}" for w, h in (size, group.size))
            raise UserError(f"{where}: {member} is {mask} but its image is {own}; export the mask in the image's size.")
    own_split = facts.split or split
    label = int(bool(group.masks)) if facts.label is None else facts.label
    if label and own_split != "test":
        raise UserError(
            f"{where}: {group.key} is anomalous but in {own_split}; only normal images train and calibrate."
        )
    if group.masks and not label:
        raise UserError(f"{where}: {group.key} is said to be normal, but its mask marks a defect; correct one of them.")
    masks = [group.masks[number] for number in sorted(group.masks)]
    width, height = group.size
    return {
        "sample_id": f"{defaults.dataset}/{class_name}/{own_split}/{group.key.removeprefix(f'{class_name}/')}",
        "class_name": class_name,
        "split": own_split,
        "label": label,
        "defect_type": facts.defect_type or ("defect" if label else "good"),
        "shard": shard,
        "key": group.key,
        **spans_columns("mask", []),
        **span_columns("original", image),
        **spans_columns("original_mask", masks),
        "mask_ids": [[] for _ in masks],
        "group": facts.group,
        "view": facts.view,
        "width": width,
        "height": height,
        "source": group.image_name,
        "source_sha256": image.sha256,
        "source_width": width,
        "source_height": height,
        LINE_COLUMN: "",
    }


def _check_rows(store: Store, rows: pa.Table) -> None:
    if rows.num_rows == 0:
        raise UserError(f"{store.url}: the tars hold no images of the types {' '.join(sorted(IMAGE_SUFFIXES))}.")
    ids = rows.column("sample_id").to_pylist()
    double, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{store.url}: two samples are called {double}; give them different keys or a folder each.")


def _skeleton(defaults: Defaults, shards: list[ShardInfo], rows: pa.Table) -> Manifest:
    columns = (rows.column(name).to_pylist() for name in ("class_name", "split", "label", "defect_type"))
    return unsealed_manifest(
        rendition=stored_form(size=None, original=True),
        dataset=defaults.dataset,
        layout=FOREIGN,
        licence=defaults.licence,
        source="tars indexed in place",
        classes=count_classes(zip(*columns, strict=True)),
        shards=shards,
    )
