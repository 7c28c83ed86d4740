"""Bytes of samples out of shards, verified against the index and decoded."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmad_dist.errors import UserError, first_line
from fmad_dist.images import open_image, square_rgb
from fmad_dist.masks import marked_pixels, raw_mask, resize_mask
from fmad_dist.stream.dataset import Dataset, Span
from fmad_dist.stream.shards import ReadOptions, ShardReader

_RESTORE = "restore the shard or convert the dataset again"


class BadSample(UserError):
    """A stored sample whose bytes are damaged or cannot be decoded: it, and nothing else, is unusable."""

    def __init__(self, sample_id: str, url: str, reason: str, fix: str = _RESTORE) -> None:
        super().__init__(f"{url}: sample {sample_id} {reason}; {fix}.")
        self.sample_id = sample_id
        self.url = url  # of the file that is damaged
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type["BadSample"], tuple[str, str, str, str]]:
        return type(self), (self.sample_id, self.url, self.reason, self.fix)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Rows with the verified bytes of their images, or with what is wrong with them."""

    rows: list[int]
    data: list[bytes | BadSample]


class SampleReader:
    """Reads rows of one dataset by byte range, at `size` pixels per side (None: the size of the stored rendition).

    Another size than the stored one is made from the stored original, by the rules of the conversion. Safe to pickle:
    storage is opened lazily in each process.

    Raises:
        UserError: the dataset stores no rendition of this size and no originals.
    """

    def __init__(self, dataset: Dataset, size: int | None = None, options: ReadOptions | None = None) -> None:
        stored = dataset.manifest.rendition
        wanted = size or stored.size
        self.resized = wanted == stored.size
        if wanted is None or not (self.resized or stored.original):
            raise UserError(
                f"{dataset.url}: stores {stored.size or 'no'} px images and not {size or 'one size'}; set "
                "features.image_size to what is stored, or convert the dataset again with --size or --rendition both."
            )
        self.size = wanted
        self.dataset = dataset
        self.shards = ShardReader(dataset, options or ReadOptions())

    def image(self, row: int) -> np.ndarray:
        """One image as uint8 [S, S, 3].

        Raises:
            BadSample: its bytes are damaged.
            UserError: the shard is missing or the storage does not answer.
        """
        found = self.images([row])[0]
        if isinstance(found, BadSample):
            raise found
        return found

    def images(self, rows: Sequence[int]) -> "list[np.ndarray | BadSample]":
        """Several images at once, uint8 [S, S, 3] each; damaged ones are returned as what is wrong with them.

        Raises:
            UserError: a shard is missing or the storage does not answer.
        """
        return self.decode(self.fetch(rows))

    def fetch(self, rows: Sequence[int]) -> "Fetched":
        """The verified, still encoded images of several rows, in few requests."""
        places = [self.dataset.image_place(row, original=not self.resized) for row in rows]
        return Fetched(list(rows), self._verified(rows, places))

    def decode(self, fetched: "Fetched") -> "list[np.ndarray | BadSample]":
        return [self._decoded(row, data) for row, data in zip(fetched.rows, fetched.data, strict=True)]

    def masks(self, row: int) -> list[np.ndarray]:
        """The sample's masks as uint8 [S, S] each, zero where normal; empty for a normal image.

        Raises:
            BadSample: a mask is damaged.
        """
        if self.resized:
            return self._raw_masks(row, self.dataset.sample(row).masks)
        return [resize_mask(mask, self.size)[0].astype(np.uint8) * 255 for mask in self.native_masks(row)]

    def native_masks(self, row: int) -> list[np.ndarray]:
        """The sample's masks as published, bool [source height, source width] each; empty for a normal image.

        Raises:
            BadSample: a mask is damaged.
        """
        return [marked_pixels(raw) for raw in self._raw_masks(row, self.dataset.sample(row).original_masks)]

    def _raw_masks(self, row: int, spans: Sequence[Span]) -> list[np.ndarray]:
        sample = self.dataset.sample(row)
        masks = []
        for data in self._verified([row] * len(spans), [(sample.shard, span) for span in spans]):
            if isinstance(data, BadSample):
                raise data
            try:
                masks.append(raw_mask(data, sample.sample_id))
            except UserError as error:
                raise self._bad(row, f"has a mask that is no image ({error})") from None
        return masks

    def xyz(self, row: int) -> np.ndarray | None:
        """The stored point cloud as float32 [H, W, 3] with (0, 0, 0) where a point is missing; None without one."""
        sample = self.dataset.sample(row)
        if sample.xyz is None:
            return None
        data = self._verified([row], [(sample.shard, sample.xyz)])[0]
        if isinstance(data, BadSample):
            raise data
        return np.load(io.BytesIO(data), allow_pickle=False)

    def _decoded(self, row: int, data: bytes | BadSample) -> np.ndarray | BadSample:
        if isinstance(data, BadSample):
            return data
        try:
            if self.resized:
                return decode_rgb_png(data)
            sample_id = self.dataset.sample_ids[row]
            return np.asarray(square_rgb(open_image(data, sample_id), self.size, sample_id))
        except (UserError, RuntimeError) as error:
            return self._bad(row, f"is no readable image ({first_line(error)})")

    def _verified(self, rows: Sequence[int], places: Sequence[tuple[str, Span] | None]) -> list[bytes | BadSample]:
        """The bytes of one place per row. What does not match its digest is read once more past every cache."""
        read = iter(self.shards.read([place for place in places if place is not None]))
        found: list[bytes | BadSample] = []
        for row, place in zip(rows, places, strict=True):
            if place is None:
                found.append(self._bad(row, "has no stored image of this kind"))
                continue
            shard, span = place
            data = next(read)
            if not matches(data, span):
                data = self.shards.read_again(shard, span)
            found.append(data if matches(data, span) else self._bad(row, _difference(data, span)))
        return found

    def _bad(self, row: int, reason: str) -> BadSample:
        sample = self.dataset.sample(row)
        return BadSample(sample.sample_id, self.shards.store.url_of(sample.shard), reason)


def decode_rgb_png(data: bytes) -> np.ndarray:
    """A stored rendition as uint8 [H, W, 3].

    By libpng through torchvision while it has that: a fifth quicker than Pillow, and the same pixels.

    Raises:
        RuntimeError, UserError: the bytes are no PNG.
    """
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        return np.asarray(open_image(data, "a stored image").convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody writes to the buffer; that torchvision will drop this is known
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        return decode_png(encoded, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def matches(data: bytes, span: Span) -> bool:
    return len(data) == span.size and hashlib.sha256(data).hexdigest() == span.sha256


def _difference(data: bytes, span: Span) -> str:
    if len(data) < span.size:
        return f"has {len(data)} of {span.size} bytes, so the shard was truncated or changed"
    return "does not match its digest in the index, so the shard was truncated or changed"
