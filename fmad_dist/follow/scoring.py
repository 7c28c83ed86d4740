"""How a rank scores its part of the synthetic set for one checkpoint after another.

The backbone is frozen, so images are drawn and turned into features once, and only the network and the scorer run for a
checkpoint. What is kept is about half a megabyte per image of 256 px.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.flow.noise import content_keys
from fmad_dist.follow.synthetic import GOOD, SyntheticImage, SyntheticSet
from fmad_dist.images.masks import mask_on_map
from fmad_dist.jobs.scoring import Scoring, in_shards
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.metrics.wire import encode_state
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.interruption import Preempted, StopRequest


@dataclass(frozen=True)
class Versions:
    """A held-out normal with its defects: what is scored together does not depend on who scores it."""

    class_name: str
    images: list[SyntheticImage]
    features: Tensor  # normalised, float32 [B, C, G, G] on the CPU
    keys: list[int]


class SyntheticScoring(Scoring[Versions | None]):
    """One normal is a batch. Every rank has equally many shards, the last maybe without an image, so that all of them
    meet a request to stop at the end of the same one."""

    def __init__(self, images: SyntheticSet, world: World, stop: StopRequest) -> None:
        self.images, self.stop = images, stop
        self.shards = in_shards(images.rows.tolist(), 1)
        self.shards += [[] for _ in range(-len(self.shards) % world.size)]
        self.bad: dict[int, BadSample] = {}  # damaged images by row
        self._versions: dict[int, Versions] = {}

    def start(self, detector: Detector, title: str) -> None:
        """Score with this detector from now on, and count from nothing."""
        self.detector, self.title = detector, title
        self.state = EvaluationState(detector.spec.protocol)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Versions | None]:
        for (row,) in batches:
            if row not in self._versions and row not in self.bad:
                self._draw(row)
            yield self._versions.get(row)

    def _draw(self, row: int) -> None:
        try:
            images = self.images.images(row)
        except BadSample as error:
            self.bad[row] = error
            return
        pixels = torch.stack([torch.tensor(image.pixels).permute(2, 0, 1) for image in images])
        features = self.detector.features(pixels).cpu()
        self._versions[row] = Versions(self.images.class_name(row), images, features, content_keys(pixels))

    def score(self, batch: Versions | None) -> None:
        if batch is None:
            return
        found = self.detector.score(batch.features.to(self.detector.class_means.device), batch.keys)
        scores, maps = found.scores.tolist(), found.maps.float().cpu().numpy()
        for position, image in enumerate(batch.images):
            scored = ScoredImage(
                sample_id=image.sample_id,
                class_name=batch.class_name,
                label=int(image.kind != GOOD),
                defect_type=image.kind,
                image_score=scores[position],
                anomaly_map=maps[position],
                mask=mask_on_map([image.mask], self.detector.spec.protocol.map_size),
                image=image.pixels,
            )
            self.state.update(scored)

    def end_shard(self, number: int) -> Preempted | None:
        return Preempted("asked to stop between two shards") if self.stop.agreed() else None

    def encoded(self) -> bytes:
        return encode_state(self.state)
