"""Methods of others in the same comparison: trained here on the same features and the same training samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor

from fmad_dist.config import RunConfig
from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.features.cache import cached_source
from fmad_dist.progress import Progress
from fmad_dist.scoring.interface import Scorer
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.data import TrainingData
from fmad_dist.training.engine import gather_objects
from fmad_dist.world import World

PEERS = ("cflow",)
PEER_MARK = "(peer)"


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that runs; `steps` None = as many batches as the detector was trained with."""

    name: str
    steps: int | None = None

    @property
    def title(self) -> str:
        return f"{self.name} {PEER_MARK}" + ("" if self.steps is None else f" steps={self.steps}")


def choose_peers(text: str) -> tuple[Peer, ...]:
    """From `cflow` or `cflow:steps=2000`; empty text for none.

    Raises:
        UserError: a peer is unknown, has a wrong option, or its package is not installed.
    """
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(text: str) -> Peer:
    name, *options = text.split(":")
    if name not in PEERS:
        raise UserError(f"--peers: {name!r} is not known; there is {', '.join(PEERS)}.")
    if find_spec("anomalib") is None:
        raise UserError(f"--peers: {name} comes from anomalib, which is missing; install fmad-dist[peers].")
    key, _, value = (options or ["steps="])[0].partition("=")
    if len(options) > 1 or key != "steps" or (options and not (value.isdecimal() and int(value) > 0)):
        raise UserError(f"--peers: {text!r}: the only option is a number of batches, as in {name}:steps=2000.")
    return Peer(name, int(value) if value else None)


def train_peer(peer: Peer, detector: Detector, config: RunConfig, data: TrainingData, world: World) -> Scorer:
    """The main process trains and the others get its weights; every rank calls."""
    from fmad_dist.comparison.cflow import CFlow, fit_cflow

    spec = detector.spec
    scorer = CFlow(spec.network.channels, spec.network.grid, world.device, spec.seed)
    if world.is_main:
        steps = peer.steps or spec.train_step
        fit_cflow(scorer, _features(detector, config, data, steps, peer.title, world), spec.seed)
    weights = {name: tensor.cpu() for name, tensor in scorer.decoder.state_dict().items()} if world.is_main else None
    scorer.decoder.load_state_dict(gather_objects(weights)[0])
    return scorer


def _features(
    detector: Detector, config: RunConfig, data: TrainingData, steps: int, title: str, world: World
) -> Iterator[Tensor]:
    """Whitened features [B, C, G, G] of the samples of the first training steps, in the order of the training."""
    cached = cached_source(config.features.cache, data.mixture, detector.backbone, detector.spec.backbone_digest)
    layout = BatchLayout.fit(config.train.global_batch, None, 1)
    with Progress(f"train {title}", steps) as progress:
        for batch in data.batches(cached or data.images, layout, 0, 0, steps, pin=False):
            x = batch.data.to(world.device)
            yield detector.whitening(x if cached else detector.backbone(x))
            progress.advance(1)
