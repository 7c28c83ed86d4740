"""What a scorer is: its options, which say where it fits and build it, and the scorer itself.

A scorer is one file with two classes, a `ScoringMethod` and a `Scorer`, and one line in a pyproject.toml that registers
it (`config/scorers.py`; docs/methods.md has an example). All other code asks these two and knows no scorer by name.
"""

import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.maps import blur, top_mean, upsample


@dataclass(frozen=True, slots=True)
class Trained:
    """What a scorer needs to know about a trained network."""

    objective: ObjectiveConfig
    coupling_strength: float
    shape: tuple[int, int, int]  # C, H, W of the network's input
    num_classes: int
    seed: int


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Mean and standard deviation of one scorer's scores over all locations of the held-out normals."""

    mean: float
    std: float


class NormalImages(typing.Protocol):
    """The normal images of a trained model as whitened features, for scorers that are fitted to them.

    Images that cannot be read are left out. Every rank has one of these and makes the same calls of `world`.
    """

    world: World
    field: Velocity
    class_names: Sequence[str]
    class_means: Tensor  # float32 [K, C], over the training normals of each class
    training_counts: Sequence[int]  # training normals of each class
    num_locations: int  # H * W of the features

    def training(self, class_number: int, count: int) -> Iterator[Tensor]:
        """`count` evenly spaced training normals of a class (or all of it), float32 [b, C, H, W] at a time."""

    def held_out(self) -> Iterator[tuple[Tensor, list[int]]]:
        """This rank's share of the held-out normals: features float32 [b, C, H, W] and one key per image at a time."""


class Scorer(ABC):
    """Turns whitened features into anomaly scores on their grid, and those into maps and one score per image.

    A scorer with tensors of its own is an `nn.Module` too: they are saved and move with the detector's.
    """

    statistics: tuple[PartStatistics, ...] | None = None  # what the calibration keeps of it, in detector.json

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations per image."""

    @abstractmethod
    def __call__(self, field: Velocity, x: Tensor, keys: Sequence[int], /) -> Tensor:
        """Field, features [B, C, H, W] and one key per image for random draws -> scores [B, H, W], higher is more
        anomalous; or [B, 2, H, W], of which the first judge the image and the second make its map."""

    def finish(self, scores: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
        """Image scores [B] and maps [B, S, S] from what a call returned."""
        if scores.ndim == 3:
            maps = self.to_pixels(scores, protocol)
            return self.image_scores(maps, protocol), maps
        judging, shown = (self.to_pixels(plane, protocol) for plane in scores.unbind(dim=1))
        return self.image_scores(judging, protocol), shown

    def to_pixels(self, scores: Tensor, protocol: Protocol) -> Tensor:
        """Maps [B, S, S] from scores on the grid [B, H, W]."""
        maps = upsample(scores, protocol.map_size, protocol.align_corners)
        return blur(maps, protocol.blur_sigma, protocol.blur_radius)

    def image_scores(self, maps: Tensor, protocol: Protocol) -> Tensor:
        """Image scores [B] from maps [B, S, S]; of "range and sum over the test set" the range alone."""
        if protocol.image_score == "top percent":
            return top_mean(maps, protocol.top_percent)
        highest = maps.amax(dim=(1, 2))
        return highest if protocol.image_score == "maximum" else highest - maps.amin(dim=(1, 2))

    def fit(self, normals: NormalImages) -> "Scorer":
        """The scorer fitted to normal images; itself if there is nothing to fit. Every rank calls."""
        return self

    def with_statistics(self, statistics: tuple[PartStatistics, ...] | None) -> "Scorer":
        """The scorer with the `statistics` that a calibration kept."""
        return self


class VectorScorer(Scorer):
    """A scorer without random draws whose scores are mean squares over the channels of vectors."""

    @abstractmethod
    def vectors(self, field: Velocity, x: Tensor) -> Tensor:
        """Field, whitened features [B, C, H, W] -> vectors [B, C, H, W]."""

    def __call__(self, field: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W] >= 0; `keys` are not used."""
        return self.vectors(field, x).square().mean(dim=1)


class ScoringMethod(ScorerConfig, ABC):
    """The options of a scorer, each with a default, and what follows from them.

    A subclass declares `name: Literal["..."] = "..."` and `build`, and overrides what is different for it.
    """

    needs_normals: ClassVar[bool] = False  # whether `Scorer.fit` does something; then it is no part of another scorer

    @abstractmethod
    def build(self, trained: Trained) -> Scorer:
        """The scorer for a trained network whose objective `refusal` does not refuse."""

    @property
    def draws_noise(self) -> bool:
        """Whether it draws noise for every image, independently of the image."""
        return False

    def refusal(self, objective: ObjectiveConfig) -> str | None:
        """Why it cannot score a network that was trained for this objective, or None."""
        if objective.path == "vp":
            return "it needs a velocity, and a network of objective.path vp predicts noise; use ddim"
        if self.draws_noise and objective.coupling != "independent":
            return (
                f"it draws noise independently of the image, where a network of coupling {objective.coupling} was "
                "never trained; use inversion, endpoint or residual"
            )
        return None

    def refusal_as_part(self, objective: ObjectiveConfig) -> str | None:
        """Why it cannot be a part of another scorer, with its name, or None."""
        reason = self.refusal(objective)
        return reason and f"its part {self.name}: {reason}"

    def export_refusal(self) -> str | None:
        """Why an ONNX graph cannot hold the scorer, or None."""
        return "draws random numbers for every image, which an ONNX graph cannot" if self.draws_noise else None

    def check_change(self, calibrated: ScorerConfig) -> None:
        """Check these options in place of those that a model was calibrated with.

        Raises:
            UserError: the scores would not be comparable with the calibrated ones although the options look alike.
        """

    @classmethod
    def compared(cls) -> tuple["ScoringMethod", ...]:
        """The options with which `fmad compare --scorers all` runs it, one row each."""
        return (cls.model_validate({}),)


class VectorMethod(ScoringMethod):
    """The options of a `VectorScorer`, which may be the part of a deviation."""

    @abstractmethod
    def build(self, trained: Trained) -> VectorScorer:
        """The scorer for a trained network whose objective `refusal` does not refuse."""


def method_of(config: ScorerConfig) -> ScoringMethod:
    """The configuration of a scorer as what it must be.

    Raises:
        UserError: the package that registers it made it of another class.
    """
    if not isinstance(config, ScoringMethod):
        raise UserError(f"scorer {config.name}: {type(config).__qualname__} is no scoring.interface.ScoringMethod.")
    return config


def build_scorer(config: ScorerConfig, trained: Trained) -> Scorer:
    """The scorer of a configuration for a trained network.

    Raises:
        UserError: the scorer cannot be used with the objective that the network was trained for.
    """
    method = method_of(config)
    reason = method.refusal(trained.objective)
    if reason:
        raise UserError(f"scorer.name: {config.name} does not fit this model: {reason}.")
    return method.build(trained)
