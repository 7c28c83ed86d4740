"""Where the tensors of a mixture's global indices come from: stored images, or cached features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample, Fetched, SampleReader
from fmad_dist.stream.shards import ReadOptions


class SampleSource(ABC):
    """Reads in two parts, so that the bytes of one batch can travel while another is decoded."""

    @property
    @abstractmethod
    def is_remote(self) -> bool:
        """Whether fetching waits for a network."""

    @abstractmethod
    def fetch(self, indices: Sequence[int]) -> Any:
        """The verified bytes of global indices, as `decode` takes them."""

    @abstractmethod
    def decode(self, fetched: Any) -> list[Tensor | BadSample]:
        """One tensor per index that was fetched, or what is wrong with that sample."""

    def read(self, index: int) -> Tensor:
        """One tensor.

        Raises:
            BadSample: the stored sample is damaged.
        """
        found = self.decode(self.fetch([index]))[0]
        if isinstance(found, BadSample):
            raise found
        return found


@dataclass(frozen=True, slots=True)
class _FetchedPart:
    """What one dataset contributes to a batch."""

    places: list[int]  # in the batch
    dataset: str
    fetched: Fetched


class ImageSource(SampleSource):
    """Images of a mixture at `image_size` pixels per side, uint8 [3, S, S] each.

    Raises:
        UserError: a dataset stores no images of this size and no originals to make them from.
    """

    def __init__(self, mixture: Mixture, image_size: int, options: ReadOptions | None = None) -> None:
        self.mixture = mixture
        self.readers = {dataset.name: SampleReader(dataset, image_size, options) for dataset in mixture.datasets}

    @property
    def is_remote(self) -> bool:
        return not all(reader.shards.store.is_local for reader in self.readers.values())

    def fetch(self, indices: Sequence[int]) -> list[_FetchedPart]:
        places: dict[str, list[int]] = {}
        rows: dict[str, list[int]] = {}
        for place, index in enumerate(indices):
            dataset, row = self.mixture.locate(int(index))
            places.setdefault(dataset.name, []).append(place)
            rows.setdefault(dataset.name, []).append(row)
        return [_FetchedPart(places[name], name, self.readers[name].fetch(rows[name])) for name in rows]

    def decode(self, fetched: list[_FetchedPart]) -> list[Tensor | BadSample]:
        found: dict[int, Tensor | BadSample] = {}
        for part in fetched:
            images = self.readers[part.dataset].decode(part.fetched)
            found.update(zip(part.places, map(_as_tensor, images), strict=True))
        return [found[place] for place in range(len(found))]


def _as_tensor(image: np.ndarray | BadSample) -> Tensor | BadSample:
    if isinstance(image, BadSample):
        return image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
