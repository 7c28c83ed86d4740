"""How the peers of a comparison are trained or built, on any number of processes.

The features that they learn from are of the flow's own training normals, never of held-out or test images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from fmad_dist.base.console import Progress, say
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches
from fmad_dist.comparison.choice import BankConfig, CFlowConfig, PeerConfig
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.features.cache import cached_source
from fmad_dist.flow.noise import keyed_generator
from fmad_dist.scoring.interface import Scorer
from fmad_dist.scoring.memory import coreset
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.plan import BatchLayout, by_class
from fmad_dist.stream.reader import BadSample
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
        starts = range(0, steps * self.global_batch, self.global_batch)
        for batch in self.data.batches(self.source, layout, 0, starts, pin=False):
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
    positions = torch.randperm(len(vectors), generator=generator)[:count]
    return vectors[positions.sort().values.to(vectors.device)]


@dataclass(frozen=True)
class KeptTensors:
    """Tensors that took long to make, in files of `store`, so that another start of the job with this key has them."""

    store: Store
    key: str

    def made(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Those that an earlier start kept under this name, else those that `make` gives; on the CPU."""
        file = f"tensors-{key_of({'job': self.key, 'name': name})}.safetensors"
        if not self.store.exists(file):
            self.store.write(file, save({name: one.cpu().contiguous() for name, one in make().items()}))
        return load(self.store.read(file))


def train_peer(peer: PeerConfig, features: TrainingFeatures, world: World, kept: KeptTensors) -> Scorer:
    """Every rank calls and has the same scorer afterwards.

    Raises:
        UserError: more training images are damaged than a run allows.
    """
    if isinstance(peer, CFlowConfig):
        return _train_cflow(peer, features, world, kept)
    return _build_banks(peer, features, world, kept)


def for_classes_of(detector: Detector, mixture: Mixture, rows: tuple[int, ...]) -> Detector:
    """The detector for the test images at these global indices. A peer with a bank per class is told their classes;
    all others are as they were."""
    scorer = detector.scorer
    if not (isinstance(scorer, BankScorer) and scorer.per_class):
        return detector
    return detector.scored_by(scorer.for_classes(mixture.class_numbers[list(rows)].tolist()))


def _train_cflow(peer: CFlowConfig, features: TrainingFeatures, world: World, kept: KeptTensors) -> Scorer:
    """The main process trains and the others get its weights."""
    from fmad_dist.comparison.cflow import CFlow, fit_cflow

    spec = features.detector.spec
    scorer = CFlow(spec.network.channels, spec.network.grid, world.device, spec.seed)
    steps = peer.steps or spec.train_step

    def train() -> dict[str, Tensor]:
        with Progress(f"train {peer.title}", steps) as progress:
            fit_cflow(scorer, progress.over(features.batches(steps)), spec.seed)
        return scorer.decoder.state_dict()

    scorer.decoder.load_state_dict(world.broadcast(kept.made(peer.title, train) if world.is_main else {}))
    return scorer


def _build_banks(peer: BankConfig, features: TrainingFeatures, world: World, kept: KeptTensors) -> Scorer:
    """The ranks build one bank after another of their share of the classes, and then send them to each other."""
    patches = Patches(peer.side, _channels(peer.taps, features.detector))
    groups = _groups(peer, features)
    own: dict[int, Tensor] = {}
    for number, (name, rows) in enumerate(groups.items()):
        if number % world.size == world.rank:
            build = partial(_build, peer, name, rows, patches, features, world)
            own[number] = kept.made(f"{peer.title}: {name}", build)["vectors"]
    nothing = torch.empty(0)
    sent = (world.broadcast(own.get(number, nothing), number % world.size) for number in range(len(groups)))
    banks = [MemoryBank(bank.to(world.device)) for bank in sent]
    return BankScorer(banks, patches, peer.neighbours, peer.name == "bank")


def _groups(peer: BankConfig, features: TrainingFeatures) -> dict[str, np.ndarray]:
    """The training normals of each bank by its name, in the order of the class numbers."""
    train, mixture = features.data.split.train, features.data.mixture
    if peer.name == "bank_pooled":
        return {"all classes": train}
    numbers = mixture.class_numbers[train]
    names = mixture.class_names
    return dict(zip(names, by_class(train, numbers, len(names)), strict=True))


def _build(
    peer: BankConfig, name: str, rows: np.ndarray, patches: Patches, features: TrainingFeatures, world: World
) -> dict[str, Tensor]:
    seed, shown = features.detector.spec.seed, world.is_main
    vectors = features.patches(rows, patches, peer.draw, seed, f"{peer.title}: patches of {name}", shown)
    size = max(1, round(peer.share * len(vectors)))
    with Progress(f"{peer.title}: coreset of {name}", size, shown=shown) as progress:
        return {"vectors": coreset(vectors, size, seed, progress.advance)}


def _channels(taps: tuple[int, ...], detector: Detector) -> Tensor | None:
    """The feature channels of some stages of the backbone, int64, or None for all."""
    if not taps:
        return None
    stage_of_channel = np.repeat(detector.backbone.spec.taps, detector.backbone.tap_channels)
    return torch.from_numpy(np.flatnonzero(np.isin(stage_of_channel, taps))).to(detector.class_means.device)
