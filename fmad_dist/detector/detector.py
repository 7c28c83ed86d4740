"""The detector: pre-processing, features, whitening, flow, scorer, calibration in one module.

Evaluation, prediction, the registry and exports use this module and nothing beside it, so they cannot disagree. Loading
its files (files.py) needs no network connection, no run and no backbone package.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.files import (
    WEIGHTS_NAME,
    DetectorSpec,
    locate_detector,
    naming,
    read_spec,
    read_weights,
    write_detector,
)
from fmad_dist.features.backbones import Backbone, chunk_for
from fmad_dist.features.prepare import feature_spec
from fmad_dist.features.whitening import Whitening
from fmad_dist.flow.noise import content_keys
from fmad_dist.flow.paths import PATHS
from fmad_dist.flow.solvers import Field
from fmad_dist.networks.build import build_network, compile_network
from fmad_dist.scoring.calibration import Calibration, ThresholdName, decision_thresholds, nearest_class, normalise
from fmad_dist.scoring.interface import Scorer, Trained, build_scorer, method_of


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector says about a batch of images."""

    scores: Tensor  # float32 [B], higher is more anomalous
    maps: Tensor  # float32 [B, S, S], S = protocol.map_size
    classes: Tensor  # int64 [B], inferred class, position in spec.class_names
    thresholds: Tensor  # float32 [B], of the decisions, with the sensitivity in them; inf while uncalibrated
    midpoints: Tensor  # float32 [B], the thresholds as calibrated
    margins: Tensor  # float32 [B], how far the mean held-out normal is below the midpoint

    @property
    def anomalous(self) -> Tensor:
        """Decisions, bool [B]."""
        return self.scores > self.thresholds

    @property
    def normalised(self) -> Tensor:
        """Scores on one scale for all classes, float32 [B] in [0, 1]: 0.5 at the calibrated threshold. NaN while
        uncalibrated."""
        return normalise(self.scores, self.midpoints, self.margins)

    @property
    def relative_maps(self) -> Tensor:
        """Maps on the scale of `normalised`, float32 [B, S, S]."""
        return normalise(self.maps, self.midpoints[:, None, None], self.margins[:, None, None])


class Detector(nn.Module):
    """`detector(images)` for uint8 RGB [B, 3, S, S], S = spec.features.image_size; no label is needed.

    A detector is a value: what returns a detector returns another one over the same tensors and leaves this one as it
    is, but for `move_to`, which moves those tensors.
    """

    scorer: Scorer
    class_means: Tensor  # float32 [K, C]
    thresholds: Tensor  # float32 [K] as calibrated, of each class or one for all
    margins: Tensor  # float32 [K]

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(feature_spec(spec.features))
        self.whitening = Whitening(self.backbone.num_channels, spec.features.norm)
        self.network = build_network(spec.network)
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        self.field = Field(self.network, PATHS[spec.objective.path], dtype)
        self.register_buffer("class_means", torch.zeros(len(spec.class_names), self.backbone.num_channels))
        self.sensitivity = 0.5
        self.threshold: ThresholdName = "class"
        scorer = self._build_scorer(spec.scorer)
        self._take_scorer(scorer.with_statistics(spec.calibration.parts) if spec.calibration else scorer)
        self._take_limits()
        self.requires_grad_(False).eval()

    @property
    def image_size(self) -> int:
        return self.spec.features.image_size

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Detections:
        """Score uint8 RGB images [B, 3, S, S].

        Raises:
            UserError: the images have another form; other sizes and value ranges would give scores without meaning.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"images of type {images.dtype} and shape {list(images.shape)}: this detector takes uint8 RGB of shape "
                f"[B, 3, {self.image_size}, {self.image_size}]."
            )
        return self.score(self.features(images), content_keys(images))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """uint8 RGB [B, 3, S, S] -> normalised features float32 [B, C, G, G]."""
        return self.whitening(self.backbone(images.to(self.class_means.device)))

    @torch.inference_mode()
    def score(self, x: Tensor, keys: list[int]) -> Detections:
        """From normalised features [B, C, G, G] and one key per image."""
        return self.judge(x, self.scorer(self.field, x, keys))

    def judge(self, x: Tensor, grid: Tensor) -> Detections:
        """From normalised features [B, C, G, G] and what the scorer says of them: [B, G, G], or [B, 2, G, G] for the
        image and for the map."""
        scores, maps = self.scorer.finish(grid, self.spec.protocol)
        classes = nearest_class(x.mean(dim=(2, 3)), self.class_means)
        midpoints, margins = self.thresholds[classes], self.margins[classes]
        thresholds = decision_thresholds(midpoints, margins, self.sensitivity)
        return Detections(scores, maps, classes, thresholds, midpoints, margins)

    def move_to(self, device: torch.device, compiled: bool = False) -> "Detector":
        """Move to a device, as torch's `to` does: this detector itself, whose tensors its copies share, so before them.

        The backbone then runs as many images at a time as suit the device. With `compiled` the network is compiled at
        its first batch, which takes up to a minute.
        """
        self.backbone.chunk = chunk_for(device)
        if compiled:
            compile_network(self.network, scoring=True)
        return self.to(device)

    def with_scorer(self, scorer: ScorerConfig) -> "Detector":
        """With another scorer, not fitted; thresholds no longer apply and become infinite. The same scorer changes
        nothing.

        Raises:
            UserError: the scorer does not fit what was trained, or is the calibrated one with another number of draws.
        """
        if scorer == self.spec.scorer:
            return self._copy()
        if self.spec.calibration is not None:
            method_of(scorer).check_change(self.spec.scorer)
        other = self._copy(scorer=scorer, calibration=None)
        other._take_scorer(self._build_scorer(scorer))
        return other

    def scored_by(self, scorer: Scorer) -> "Detector":
        """With its scorer as it was fitted, or with one that has a network of its own, to compare with; not calibrated.
        With the latter it cannot be saved."""
        other = self._copy(calibration=None)
        other._take_scorer(scorer)
        return other

    def with_protocol(self, protocol: Protocol) -> "Detector":
        """With another protocol for its maps and image scores; its thresholds no longer apply and become infinite. What
        its scorer was fitted to stays."""
        return self._copy() if protocol == self.spec.protocol else self._copy(protocol=protocol, calibration=None)

    def with_calibration(self, calibration: Calibration | None) -> "Detector":
        """With thresholds and, for a fusion, with the statistics of its parts; None = with infinite thresholds."""
        other = self._copy(calibration=calibration)
        if calibration is not None and calibration.parts is not None:
            other._take_scorer(self.scorer.with_statistics(calibration.parts))
        return other

    def with_sensitivity(self, sensitivity: float) -> "Detector":
        """With a sensitivity that finds more (above 0.5) or less than as calibrated.

        An image is anomalous when its normalised score is above 1 - sensitivity: 0.75 puts the threshold at the mean of
        the held-out normals, 0 finds nothing, 1 everything. Normalised scores and maps stay as they are.

        Raises:
            UserError: not in [0, 1].
        """
        decision_thresholds(self.thresholds, self.margins, sensitivity)
        other = self._copy()
        other.sensitivity = sensitivity
        return other

    def with_threshold(self, name: ThresholdName) -> "Detector":
        """With the threshold of the inferred class ("class"), or with one for all classes ("global"): for products it
        was not trained on."""
        other = self._copy()
        other.threshold = name
        other._take_limits()
        return other

    def _copy(self, **changes: object) -> "Detector":
        """Another detector over the same tensors, with `changes` of its specification."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # the copy may replace its thresholds
        other._modules = dict(self._modules)  # and a scorer that is a module
        other.spec = self.spec.model_copy(update=changes)
        other._take_limits()
        return other

    def _take_limits(self) -> None:
        """Thresholds and margins of the calibration, infinite and 1 without."""
        count, calibration, device = len(self.spec.class_names), self.spec.calibration, self.class_means.device
        none = (float("inf"),) * count, (1.0,) * count
        thresholds, margins = calibration.limits(self.threshold) if calibration else none
        self.register_buffer("thresholds", torch.tensor(thresholds, device=device), persistent=False)
        self.register_buffer("margins", torch.tensor(margins, device=device), persistent=False)

    def _take_scorer(self, scorer: Scorer) -> None:
        """Some scorers are modules and others are not, which torch keeps in different dictionaries."""
        for kept in (self._modules, self.__dict__):
            kept.pop("scorer", None)
        self.scorer = scorer.to(self.class_means.device) if isinstance(scorer, nn.Module) else scorer

    def _build_scorer(self, config: ScorerConfig) -> Scorer:
        spec = self.spec
        shape = (spec.network.channels, spec.network.grid, spec.network.grid)
        trained = Trained(spec.objective, spec.coupling_strength, shape, len(spec.class_names), spec.seed)
        return build_scorer(config, trained)

    def save(self, folder: Path) -> None:
        """Write `detector.json` and `weights.safetensors`; sensitivity and choice of threshold are not kept."""
        write_detector(folder, self.spec, self.state_dict())

    @classmethod
    def load(cls, source: str | Path) -> "Detector":
        """From a detector folder, a run directory, the URL of either, or a registry URI like `models:/fmad@champion`.

        Raises:
            UserError: nothing is there, or the files are damaged, changed or do not fit together.
        """
        folder = locate_detector(str(source))
        with naming(str(source), folder):
            spec = read_spec(folder)
            detector = cls(spec)
            detector.load_state_dict(read_weights(folder / WEIGHTS_NAME, spec.weights_sha256, detector.state_dict()))
        return detector
