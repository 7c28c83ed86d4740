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

    @abstractmethod
    def fetch(self, indices: Sequence[int]) -> Any:
        """The verified bytes of global indices, as `decode` takes them."""

    @abstractmethod
    def decode(self, fetched: Any) -> list[Tensor | BadSample]:
        """One tensor per index that was fetched, or what is wrong with that sample."""

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor [B, ...] of those that `decode` gave."""
        return torch.stack(list(tensors))

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

    def fetch(self, indices: Sequence[int]) -> list[_FetchedPart]:
        places: dict[str, list[int]] = {}
        rows: dict[str, list[int]] = {}
        for place, index in enumerate(indices):
            dataset, row = self.mixture.locate(int(index))
            places.setdefault(dataset.name, []).append(place)
            rows.setdefault(dataset.name, []).append(row)
        return [_FetchedPart(places[name], name, self.readers[name].fetch(rows[name])) for name in rows]

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """[B, 3, H, W] in channels-last memory, as decoders give it and convolutions like it."""
        return torch.stack([tensor.permute(1, 2, 0) for tensor in tensors]).permute(0, 3, 1, 2)

    def decode(self, fetched: list[_FetchedPart]) -> list[Tensor | BadSample]:
        found: dict[int, Tensor | BadSample] = {}
        for part in fetched:
            images = self.readers[part.dataset].decode(part.fetched)
            found.update(zip(part.places, map(_as_tensor, images), strict=True))
        return [found[place] for place in range(len(found))]


def _as_tensor(image: np.ndarray | BadSample) -> Tensor | BadSample:
    """[3, H, W] over the decoder's own memory [H, W, 3]."""
    return image if isinstance(image, BadSample) else torch.from_numpy(image).permute(2, 0, 1)
