"""Where the tensors of a mixture's rows come from: stored images, or cached features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmad_dist.config.run import ReadOptions
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample, Fetched, SampleReader, unless_bad


class SampleSource(ABC):
    """Reads in two parts, so that the bytes of one batch can travel while another is decoded."""

    @abstractmethod
    def fetch(self, rows: Sequence[int]) -> Any:
        """The verified bytes of rows, as `decode` takes them."""

    @abstractmethod
    def decode(self, fetched: Any) -> list[Tensor | BadSample]:
        """One tensor per row that was fetched, or what is wrong with that sample."""

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor [B, ...] of those that `decode` gave."""
        return torch.stack(list(tensors))

    def read(self, row: int) -> Tensor:
        """The tensor of one row.

        Raises:
            BadSample: the stored sample is damaged.
        """
        return unless_bad(self.decode(self.fetch([row]))[0])


class ImageSource(SampleSource):
    """Images of a mixture at `image_size` pixels per side, uint8 [3, S, S] each.

    Raises:
        UserError: a dataset stores no images of this size and no originals to make them from.
    """

    def __init__(self, mixture: Mixture, image_size: int, options: ReadOptions | None = None) -> None:
        self.mixture = mixture
        self.readers = {dataset.name: SampleReader(dataset, image_size, options) for dataset in mixture.datasets}

    def fetch(self, rows: Sequence[int]) -> list[tuple[str, list[int], Fetched]]:
        """Of each dataset its name, the slots of its images in the batch, and their bytes."""
        located: dict[str, dict[int, int]] = {}  # per dataset the index of every slot
        for slot, row in enumerate(rows):
            dataset, index = self.mixture.locate(int(row))
            located.setdefault(dataset.name, {})[slot] = index
        return [(name, list(own), self.readers[name].fetch(list(own.values()))) for name, own in located.items()]

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """[B, 3, H, W] in channels-last memory, as decoders give it and convolutions like it."""
        return torch.stack([tensor.permute(1, 2, 0) for tensor in tensors]).permute(0, 3, 1, 2)

    def decode(self, fetched: list[tuple[str, list[int], Fetched]]) -> list[Tensor | BadSample]:
        """The images uint8 [3, S, S] in the order of their slots."""
        found: dict[int, Tensor | BadSample] = {}
        for name, slots, data in fetched:
            found.update(zip(slots, map(_as_tensor, self.readers[name].decode(data)), strict=True))
        return [found[slot] for slot in range(len(found))]


def _as_tensor(image: np.ndarray | BadSample) -> Tensor | BadSample:
    """[3, H, W] over the decoder's own memory [H, W, 3]."""
    return image if isinstance(image, BadSample) else torch.from_numpy(image).permute(2, 0, 1)
