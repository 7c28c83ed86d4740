"""A scorer by its configuration, or the reason why it does not fit what was trained."""

import math
from dataclasses import dataclass

from fmad_dist.config import ObjectiveConfig
from fmad_dist.errors import UserError
from fmad_dist.flow.paths import PATHS
from fmad_dist.scoring.config import (
    DDIMConfig,
    DensityConfig,
    DeviationConfig,
    EndpointConfig,
    FusionConfig,
    InversionConfig,
    MismatchConfig,
    ReconstructionConfig,
    ResidualConfig,
    ScorerConfig,
)
from fmad_dist.scoring.ddim import DDIMInversion
from fmad_dist.scoring.density import Density
from fmad_dist.scoring.deviation import MOST_CHANNELS, Deviation
from fmad_dist.scoring.endpoint import Endpoint, Residual
from fmad_dist.scoring.fusion import Fusion, PartStatistics
from fmad_dist.scoring.interface import Scorer, VectorScorer
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.scoring.mismatch import Mismatch, paper_times
from fmad_dist.scoring.reconstruction import Reconstruction


@dataclass(frozen=True, slots=True)
class Trained:
    """What a scorer needs to know about a trained network."""

    objective: ObjectiveConfig
    coupling_strength: float
    shape: tuple[int, int, int]  # C, H, W of the network's input
    num_classes: int
    seed: int


def build_scorer(
    config: ScorerConfig, trained: Trained, statistics: tuple[PartStatistics, ...] | None = None
) -> Scorer:
    """Raises:
    UserError: the scorer cannot be used with the objective that the network was trained for.
    """
    reason = refusal(config, trained.objective)
    if reason:
        raise UserError(f"scorer.name: {config.name} does not fit this model: {reason}.")
    seed = trained.seed
    match config:
        case InversionConfig():
            return Inversion(config.steps, config.solver)
        case ReconstructionConfig():
            return Reconstruction(config.tau, config.noises, config.steps, config.solver, seed, config.start)
        case DensityConfig():
            options = (config.solver, config.mask_stride, config.trace, config.chunk, seed)
            return Density(config.steps, config.probes, math.prod(trained.shape), *options)
        case MismatchConfig():
            times = config.grid or paper_times(config.times)
            return Mismatch(config.noises, times, config.aggregate, config.quantile, config.weighted, seed)
        case EndpointConfig():
            return Endpoint(config.steps)
        case ResidualConfig():
            return Residual(trained.coupling_strength)
        case DDIMConfig():
            return DDIMInversion(config.steps, PATHS[trained.objective.path])
        case FusionConfig():
            return Fusion([build_scorer(part, trained) for part in config.parts], statistics)
        case DeviationConfig():
            scorer = build_scorer(config.part, trained)
            assert isinstance(scorer, VectorScorer)
            covariance = config.covariance and trained.shape[0] <= MOST_CHANNELS
            return Deviation(scorer, trained.num_classes, trained.shape, covariance, config.locations, config.memory)


def refusal(config: ScorerConfig, objective: ObjectiveConfig) -> str | None:
    """Why a scorer cannot be used with an objective, or None."""
    if isinstance(config, FusionConfig):
        return next((found for part in config.parts if (found := _part_refusal(part, objective))), None)
    if isinstance(config, DeviationConfig):
        return _part_refusal(config.part, objective)
    if isinstance(config, DDIMConfig):
        if objective.path != "vp":
            return f"it needs a network that predicts noise (objective.path vp), this one is {objective.path}"
        return None
    if objective.path == "vp":
        return "it needs a velocity, and a network of objective.path vp predicts noise; use ddim"
    if isinstance(config, DensityConfig) and objective.coupling == "wt_soft":
        return "coupling wt_soft turns the noise, whose law is then no longer the N(0, I) of the likelihood"
    draws = isinstance(config, MismatchConfig) or (isinstance(config, ReconstructionConfig) and config.start == "noise")
    if draws and objective.coupling != "independent":
        return (
            f"it draws noise independently of the image, where a network of coupling {objective.coupling} was never "
            "trained; use inversion, endpoint or residual"
        )
    return None


def _part_refusal(part: ScorerConfig, objective: ObjectiveConfig) -> str | None:
    if getattr(part, "postprocess", "protocol") == "paper":
        return f"its part {part.name} has postprocess paper, which rescales every image by itself"
    found = refusal(part, objective)
    return found and f"its part {part.name}: {found}"


def check_draws(new: ScorerConfig, calibrated: ScorerConfig) -> None:
    """Raises:
    UserError: both take an extreme over random draws, but of different numbers of them.
    """
    if not (isinstance(new, MismatchConfig) and isinstance(calibrated, MismatchConfig)):
        return
    if new.noises != calibrated.noises and "mean" not in (new.aggregate, calibrated.aggregate):
        raise UserError(
            f"scorer.noises: {new.noises}, but this model was calibrated with {calibrated.noises}, and the "
            f"{new.aggregate} over draws depends on their number; keep {calibrated.noises}, or let `fmad compare` "
            "calibrate anew."
        )
