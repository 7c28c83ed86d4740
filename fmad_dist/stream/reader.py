"""Bytes of samples out of shards, verified against the index and decoded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fmad_dist.errors import UserError
from fmad_dist.images import open_image, square_rgb, to_rgb
from fmad_dist.masks import marked_pixels, raw_mask, resize_mask
from fmad_dist.stream.manifest import Dataset, Sample, Span
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
    """Samples with the verified bytes of their images, or with what is wrong with them."""

    samples: list[Sample]
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
        self.size = size or stored.size
        self.resized = self.size == stored.size
        if self.size is None or not (self.resized or stored.original):
            raise UserError(
                f"{dataset.url}: stores {stored.size or 'no'} px images and not {size or 'one size'}; set "
                "features.image_size to what is stored, or convert the dataset again with --size or --rendition both."
            )
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
        samples = [self.dataset.sample(row) for row in rows]
        spans = [sample.image if self.resized else sample.original for sample in samples]
        return Fetched(samples, self._verified(samples, spans))

    def decode(self, fetched: "Fetched") -> "list[np.ndarray | BadSample]":
        return [self._decoded(sample, data) for sample, data in zip(fetched.samples, fetched.data, strict=True)]

    def masks(self, row: int) -> list[np.ndarray]:
        """The sample's masks as uint8 [S, S] each, zero where normal; empty for a normal image.

        Raises:
            BadSample: a mask is damaged.
        """
        sample = self.dataset.sample(row)
        spans = sample.masks if self.resized else sample.original_masks
        masks = []
        for data in self._verified([sample] * len(spans), spans):
            if isinstance(data, BadSample):
                raise data
            try:
                raw = raw_mask(data, sample.sample_id)
            except UserError as error:
                raise self._bad(sample, f"has a mask that is no image ({error})") from None
            assert self.size is not None
            masks.append(raw if self.resized else resize_mask(marked_pixels(raw), self.size)[0].astype(np.uint8) * 255)
        return masks

    def xyz(self, row: int) -> np.ndarray | None:
        """The stored point cloud as float32 [H, W, 3] with (0, 0, 0) where a point is missing; None without one."""
        sample = self.dataset.sample(row)
        if sample.xyz is None:
            return None
        data = self._verified([sample], [sample.xyz])[0]
        if isinstance(data, BadSample):
            raise data
        import io

        return np.load(io.BytesIO(data), allow_pickle=False)

    def _decoded(self, sample: Sample, data: "bytes | BadSample") -> "np.ndarray | BadSample":
        if isinstance(data, BadSample):
            return data
        try:
            image: Image.Image = open_image(data, sample.sample_id)
            if self.resized:
                return np.asarray(to_rgb(image, sample.sample_id))
            assert self.size is not None
            return np.asarray(square_rgb(image, self.size, sample.sample_id))
        except UserError as error:
            return self._bad(sample, f"is no readable image ({error})")

    def _verified(self, samples: Sequence[Sample], spans: Sequence[Span | None]) -> "list[bytes | BadSample]":
        """The bytes of one span per sample. What does not match its digest is read once more past every cache."""
        wanted = [(sample.shard, span) for sample, span in zip(samples, spans, strict=True) if span is not None]
        found: list[bytes | BadSample] = []
        read = iter(self.shards.read(wanted))
        for sample, span in zip(samples, spans, strict=True):
            if span is None:
                found.append(self._bad(sample, "has no stored image of this kind"))
                continue
            data = next(read)
            if not matches(data, span):
                data = self.shards.read_again(sample.shard, span)
            found.append(data if matches(data, span) else self._bad(sample, _difference(data, span)))
        return found

    def _bad(self, sample: Sample, reason: str) -> BadSample:
        return BadSample(sample.sample_id, self.shards.store.url_of(sample.shard), reason)


def matches(data: bytes, span: Span) -> bool:
    return len(data) == span.size and hashlib.sha256(data).hexdigest() == span.sha256


def _difference(data: bytes, span: Span) -> str:
    if len(data) < span.size:
        return f"has {len(data)} of {span.size} bytes, so the shard was truncated or changed"
    return "does not match its digest in the index, so the shard was truncated or changed"
