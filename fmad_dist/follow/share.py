"""One rank's share of the synthetic set: drawn and turned into features once, scored for every checkpoint.

The backbone is frozen, so only the network and the scorer run for a checkpoint. What is kept is about half a megabyte
per image of 256 px.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fmad_dist.detector import Detector
from fmad_dist.evaluation.protocol import mask_on_map
from fmad_dist.evaluation.state import EvaluationState, ScoredImage
from fmad_dist.evaluation.synthetic import GOOD, SyntheticImage, SyntheticSet
from fmad_dist.flow.noise import content_keys
from fmad_dist.stream.reader import BadSample
from fmad_dist.world import World


@dataclass(frozen=True)
class _Batch:
    """The versions of one held-out normal: a batch does not depend on who computes it."""

    images: list[SyntheticImage]
    features: Tensor  # normalised, float32 [B, C, G, G] on the CPU
    keys: list[int]


class Share:
    """Every rank has the same number of rounds and scores at most one held-out normal, with its defects, in each."""

    def __init__(self, images: SyntheticSet, world: World) -> None:
        self.images = images
        self.rows = images.rows[world.rank :: world.size].tolist()
        self.num_rounds = -(-len(images.rows) // world.size)
        self.bad: dict[int, BadSample] = {}  # damaged images by row
        self._batches: dict[int, _Batch] = {}

    def score(self, number: int, detector: Detector, state: EvaluationState) -> None:
        """Add the images of one round to the state."""
        if number >= len(self.rows):
            return
        row = self.rows[number]
        batch = self._batch(row, detector)
        if batch is None:
            return
        found = detector.score(batch.features.to(detector.class_means.device), batch.keys)
        scores, maps = found.scores.tolist(), found.maps.float().cpu().numpy()
        for position, image in enumerate(batch.images):
            scored = ScoredImage(
                sample_id=image.sample_id,
                class_name=self.images.class_name(row),
                label=int(image.kind != GOOD),
                defect_type=image.kind,
                image_score=scores[position],
                anomaly_map=maps[position],
                mask=mask_on_map([image.mask], detector.spec.protocol.map_size),
                image=image.pixels,
            )
            state.update(scored)

    def _batch(self, row: int, detector: Detector) -> _Batch | None:
        if row not in self._batches and row not in self.bad:
            try:
                images = self.images.images(row)
            except BadSample as error:
                self.bad[row] = error
                return None
            pixels = torch.stack([torch.tensor(image.pixels).permute(2, 0, 1) for image in images])
            self._batches[row] = _Batch(images, detector.features(pixels).cpu(), content_keys(pixels))
        return self._batches.get(row)
