"""What would make a later stage fail and is cheap to find out before the first one starts."""

from collections.abc import Sequence

from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.parts import Part
from fmad_dist.bench.stages import Train
from fmad_dist.comparison.choice import choose
from fmad_dist.comparison.peers import check_peers, choose_peers
from fmad_dist.comparison.run import check_same_data
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.preflight import check_job


def check_comparisons(config: BenchConfig, parts: Sequence[Part]) -> None:
    """Raises:
    UserError: a scorer or peer is not known or does not fit a model or its data.
    """
    if not config.compares:
        return
    peers = choose_peers(config.peers)
    for part in parts:
        mixture = Mixture.load(part.config.data.manifests)
        if part.taken:
            spec = part.taken_spec
            choose(config.scorers, spec.objective, spec.scorer)
            check_same_data(part.taken, spec, part.digests, config.peers)
            check_peers(peers, mixture, spec.features.taps)
        else:
            choose(config.scorers, part.config.objective, part.config.scorer)
            check_peers(peers, mixture, part.config.features.taps)


def check_trainings(parts: Sequence[Part], processes: int) -> None:
    """Raises:
    UserError: the first thing that would make a training that is not done fail.
    """
    for part in parts:
        if not part.taken and Train(part).status().state != "done":
            check_job(part.config, processes)
