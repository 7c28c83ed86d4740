"""Bytes of one sample out of a shard, verified against the index and decoded."""

import hashlib
import io

import numpy as np
from PIL import Image

from fmad_dist.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.stream.manifest import Dataset, Sample, Span


class SampleReader:
    """Reads rows of one dataset by byte range. Safe to pickle: storage is opened lazily in each process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.store = Store(dataset.url)

    def image(self, row: int) -> np.ndarray:
        """The stored rendition as uint8 [H, W, 3].

        Raises:
            UserError: the shard is missing, truncated or changed.
        """
        sample = self.dataset.sample(row)
        return decode_image(self._verified(sample, sample.image), f"{sample.sample_id} in {self._where(sample)}")

    def mask(self, row: int) -> np.ndarray:
        """The union of the sample's masks as bool [H, W]; all False for a normal image."""
        sample = self.dataset.sample(row)
        mask = np.zeros((sample.height, sample.width), dtype=bool)
        for span in sample.masks:
            mask |= np.asarray(Image.open(io.BytesIO(self._verified(sample, span)))) != 0
        return mask

    def _where(self, sample: Sample) -> str:
        return self.store.url_of(sample.shard)

    def _verified(self, sample: Sample, span: Span) -> bytes:
        data = self.store.read_range(sample.shard, span.offset, span.offset + span.size)
        if len(data) != span.size or hashlib.sha256(data).hexdigest() != span.sha256:
            raise UserError(
                f"{self._where(sample)}: the bytes of sample {sample.sample_id} do not match the index, so the shard "
                "was truncated or changed; restore it or convert the dataset again."
            )
        return data


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Encoded image bytes -> uint8 RGB [H, W, 3].

    Raises:
        UserError: the bytes are not a complete image; the sentence names `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: not a readable image ({first_line(error)}); replace or remove the file.") from None
