"""What members of tars that others wrote mean: the same rules whether they are indexed or read in order."""

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.images.masks import marked_pixels, raw_mask
from fmad_dist.storage import Store
from fmad_dist.storage.faults import Fault, explain, fault_of

_LABELS = {"0": 0, "1": 1, "normal": 0, "good": 0, "anomaly": 1, "anomalous": 1}
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_MASK = re.compile(r"(?:mask|seg)(?:\.(\d+))?\.(?:png|bmp|tif|tiff)")
_MASK_ENDING = re.compile(r"(.+?)[-_ ](?:mask|gt|seg|groundtruth|ground_truth)", re.IGNORECASE)
_MASK_FOLDERS = {"mask", "masks", "ground_truth", "groundtruth", "gt"}
READ_ATTEMPTS = 5  # each after the storage has answered again
_BLOCK = 512  # a tar is made of these, and ends with at least one of zeros


@dataclass(frozen=True, slots=True)
class Facts:
    """What the `json` member of a sample says; empty or None where it says nothing."""

    class_name: str = ""
    split: str | None = None
    label: int | None = None
    defect_type: str = ""
    group: str = ""
    view: str = ""

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Facts":
        """Read the bytes of a `json` member.

        Raises:
            UserError: not JSON, or a label or split that nobody knows; the sentence begins with `where`.
        """
        try:
            facts = json.loads(data)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({first_line(error)}); correct or remove it.") from None
        if not isinstance(facts, dict):
            return cls()
        said = {name: str(value).strip() for name, value in facts.items() if value is not None}
        label, split = said.get("label", "").lower(), said.get("split", "").lower()
        if label and label not in _LABELS:
            raise UserError(f"{where}: label {label!r} is unknown; use 0 for normal or 1 for anomalous.")
        if split and split not in _SPLIT_WORDS:
            raise UserError(f"{where}: split {split!r} is unknown; use train, val or test.")
        return cls(
            class_name=said.get("class_name") or said.get("class", ""),
            split=_SPLIT_WORDS.get(split),
            label=_LABELS.get(label),
            defect_type=said.get("defect_type", ""),
            group=said.get("group", ""),
            view=said.get("view", ""),
        )


def regular_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an open tar in order; folders are passed over.

    Raises:
        tarfile.TarError: the tar is damaged, or has something that byte ranges cannot address.
    """
    for member in tar:
        if member.isfile() and not member.issparse():
            yield member
        elif not member.isdir():
            raise tarfile.ReadError(f"{member.name} is a link or a sparse file")
        tar.members = []  # type: ignore[attr-defined]  # they would pile up


def refuse_packed(names: Iterable[str], store: Store) -> None:
    """Refuse a compressed tar, whose members have no byte ranges (UserError)."""
    for name in names:
        if name.endswith(_PACKED):
            raise UserError(f"{store.url_of(name)}: a compressed tar cannot be read in parts; unpack it to .tar.")


def mask_number(extension: str) -> int | None:
    """Which mask of its sample a file is, by its lower-case extension; None if it is no mask."""
    found = _MASK.fullmatch(extension)
    return int(found[1] or 0) if found else None


def refuse_unpaired_mask(member: str, where: str) -> None:
    """Refuse an image whose name or folder says that it is a mask: it would become a normal picture.

    Raises:
        UserError: it looks like one; the sentence begins with `where`.
    """
    folder, _, base = member.rpartition("/")
    stem = base.partition(".")[0]
    named = _MASK_ENDING.fullmatch(stem)
    if named or not _MASK_FOLDERS.isdisjoint(folder.lower().split("/")):
        own = named[1] if named else stem
        raise UserError(
            f"{where}: {member} looks like the mask of {own}; a mask is called like its image, with .mask.png instead "
            f"of the ending ({own}.mask.png)."
        )


def marks_defect(mask: bytes, where: str) -> bool:
    """Whether any pixel is marked: empty masks of normal images are common. Refuses what is no image (UserError)."""
    return bool(marked_pixels(raw_mask(mask, where)).any())


def split_of_tar(name: str) -> str | None:
    """The split that a tar's path speaks of, by the last word that names one."""
    words: Iterable[str] = re.split(r"[^a-z]+", name.lower())
    found = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
    return found[-1] if found else None


class TarStream:
    """The bytes of a tar in order, and whether they end where a tar ends. Close it.

    Readers of tars take a damaged header, and a file that was cut between two members, for the end. A storage that goes
    away in the middle is waited for as long as the store waits. `observe` is given all bytes that are read.

    Raises:
        UserError: the tar is missing, or the storage does not answer.
    """

    def __init__(self, store: Store, name: str, observe: Callable[[bytes], None] = lambda data: None) -> None:
        self.store = store
        self.name = name
        self.observe = observe
        self.num_bytes = 0
        self._content_end = 0  # behind the last byte that is not zero
        self._file: BinaryIO = store.open(name)

    def read(self, size: int = -1) -> bytes:
        data = self._read(size)
        self.observe(data)
        content = data.rstrip(b"\0")
        if content:
            self._content_end = self.num_bytes + len(content)
        self.num_bytes += len(data)
        return data

    def close(self) -> None:
        self._file.close()

    def _read(self, size: int) -> bytes:
        attempts = 1
        while True:
            try:
                return self._file.read(size)
            except Exception as error:
                if attempts == READ_ATTEMPTS or fault_of(error) not in (Fault.PASSING, Fault.DENIED):
                    raise explain(error, self.store.url_of(self.name)) or error from error
            attempts += 1
            self._file = self.store.open(self.name)  # waits, and takes the credentials anew
            self._file.seek(self.num_bytes)

    def is_whole(self, end: int | None = None) -> bool:
        """Read what is left; whether only zeros follow `end` (None: what was read so far), and at least a block."""
        end = self.num_bytes if end is None else end
        while self.read(1 << 20):
            pass
        return self._content_end <= end and self.num_bytes - self._content_end >= _BLOCK
