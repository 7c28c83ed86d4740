"""The features that peers learn from: of the flow's own training normals, never of held-out or test images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fmad_dist.comparison.bank import Patches
from fmad_dist.config import RunConfig
from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.features.cache import cached_source
from fmad_dist.flow.noise import keyed_generator
from fmad_dist.progress import Progress
from fmad_dist.storage.faults import say
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.stream.reader import BadSample
from fmad_dist.stream.sources import SampleSource
from fmad_dist.training.data import TrainingData


class TrainingFeatures:
    """Whitened features [B, C, G, G] of training images, out of the feature cache where there is one."""

    def __init__(self, detector: Detector, config: RunConfig, data: TrainingData) -> None:
        self.detector, self.data = detector, data
        cached = cached_source(config.features.cache, data.mixture, detector.backbone, detector.spec.backbone_digest)
        self.cached = cached is not None
        self.source: SampleSource = cached or data.images
        self.global_batch = config.train.global_batch
        self.max_bad_samples = config.data.max_bad_samples
        self.damaged: dict[str, BadSample] = {}  # left out

    def batches(self, steps: int) -> Iterator[Tensor]:
        """The samples of the first training steps, in the order of the training."""
        layout = BatchLayout.fit(self.global_batch, None, 1)
        for batch in self.data.batches(self.source, layout, 0, 0, steps, pin=False):
            yield self._whitened(batch.data)

    def patches(self, rows: np.ndarray, patches: Patches, draw: int, seed: int, title: str, shown: bool) -> Tensor:
        """Patches [N, D] of the images at global indices `rows`, at most `draw`, drawn with the seed and the index.

        Every image gives equally many; when there are more images than patches to draw, evenly spaced images give one
        each. So `draw` bounds the memory, and no layout of processes or batches changes what is drawn.

        Raises:
            UserError: more images are damaged than a run allows, or all of them.
        """
        rows = rows[:: -(-len(rows) // draw)]
        drawn: list[Tensor] = []
        with Progress(title, len(rows), shown=shown) as progress:
            for part in np.split(rows, range(self._chunk, len(rows), self._chunk)):
                for row, vectors in self._readable(part, patches):
                    drawn.append(_draw(vectors, draw // len(rows), seed, row))
                progress.advance(len(part))
        if not drawn:
            raise UserError(f"{title}: all {len(rows)} training images are damaged; restore their shards.")
        return torch.cat(drawn)

    @property
    def _chunk(self) -> int:
        return self.detector.backbone.chunk

    def _readable(self, rows: np.ndarray, patches: Patches) -> Iterator[tuple[int, Tensor]]:
        """(global index, its patches [T, D]) of those images that are not damaged."""
        found = self.source.decode(self.source.fetch(rows.tolist()))
        self._note([one for one in found if isinstance(one, BadSample)])
        usable = {int(row): one for row, one in zip(rows, found, strict=True) if not isinstance(one, BadSample)}
        if usable:
            x = self._whitened(self.source.stack(list(usable.values())))
            yield from zip(usable, patches(x), strict=True)

    def _note(self, bad: list[BadSample]) -> None:
        for one in bad:
            if one.sample_id not in self.damaged:
                self.damaged[one.sample_id] = one
                say(f"--peers: left out damaged sample {len(self.damaged)} of at most {self.max_bad_samples}: {one}")
        if len(self.damaged) > self.max_bad_samples:
            raise UserError(f"data.max_bad_samples: {self.max_bad_samples} damaged samples allowed, --peers met more.")

    def _whitened(self, stored: Tensor) -> Tensor:
        x = stored.to(self.detector.class_means.device)
        return self.detector.whitening(x if self.cached else self.detector.backbone(x))


def _draw(vectors: Tensor, count: int, seed: int, row: int) -> Tensor:
    """`count` of the vectors [T, D], which ones keyed by (seed, row); a copy, so that the others can be forgotten."""
    if count >= len(vectors):
        return vectors.clone()
    generator = keyed_generator(torch.device("cpu"), seed, row)
    places = torch.randperm(len(vectors), generator=generator)[:count]
    return vectors[places.sort().values.to(vectors.device)]
