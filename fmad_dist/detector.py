"""The detector: pre-processing, features, whitening, flow, scorer, calibration in one module.

Evaluation, prediction, the registry and exports use this module and nothing beside it, so they cannot disagree. Loading
its files (detector_files.py) needs no network, no run and no backbone package.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fmad_dist.detector_files import (
    WEIGHTS_NAME,
    DetectorSpec,
    locate_detector,
    naming,
    read_spec,
    read_weights,
    write_detector,
)
from fmad_dist.errors import UserError
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.features.backbones import Backbone, chunk_for
from fmad_dist.features.prepare import feature_spec
from fmad_dist.features.whitening import Whitening
from fmad_dist.flow.fields import Field
from fmad_dist.flow.noise import content_keys
from fmad_dist.flow.paths import PATHS
from fmad_dist.networks.build import build_network, compile_network
from fmad_dist.scoring.build import Trained, build_scorer, check_draws
from fmad_dist.scoring.calibration import (
    Calibration,
    ThresholdName,
    decision_thresholds,
    nearest_class,
    normalise,
)
from fmad_dist.scoring.config import InversionConfig, ScorerConfig
from fmad_dist.scoring.interface import Scorer
from fmad_dist.scoring.maps import finish


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
    """`detector(images)` for uint8 RGB [B, 3, S, S], S = spec.features.image_size; no label is needed."""

    class_means: Tensor
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
        self.scorer: Scorer = self._build_scorer()
        self.register_buffer("class_means", torch.zeros(len(spec.class_names), self.backbone.num_channels))
        self.sensitivity = 0.5
        self._take_limits("class")
        self.requires_grad_(False).eval()

    @property
    def image_size(self) -> int:
        return self.spec.features.image_size

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Detections:
        """Raises:
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
        judging, shown = (grid, grid) if grid.ndim == 3 else grid.unbind(dim=1)
        scores, maps = finish(judging, self.spec.protocol, self.spec.scorer)
        if grid.ndim == 4:
            _, maps = finish(shown, self.spec.protocol, self.spec.scorer)
        classes = nearest_class(x.mean(dim=(2, 3)), self.class_means)
        midpoints, margins = self.thresholds[classes], self.margins[classes]
        thresholds = decision_thresholds(midpoints, margins, self.sensitivity)
        return Detections(scores, maps, classes, thresholds, midpoints, margins)

    def place(self, device: torch.device, compiled: bool = False) -> "Detector":
        """Move to a device and let the backbone run as many images at a time as suit it; the network compiles at its
        first batch, if it shall, which takes up to a minute."""
        self.backbone.chunk = chunk_for(device)
        if compiled:
            compile_network(self.network, scoring=True)
        return self.to(device)

    def with_scorer(self, scorer: ScorerConfig) -> "Detector":
        """The same detector with another scorer; its thresholds no longer apply and become infinite.

        Raises:
            UserError: the scorer does not fit what was trained, or is the calibrated one with another number of draws.
        """
        if scorer != self.spec.scorer:
            if self.spec.calibration is not None:
                check_draws(scorer, self.spec.scorer)
            self.spec = self.spec.model_copy(update={"scorer": scorer, "calibration": None})
            self._take_scorer(self._build_scorer())
            self._take_limits("class")
        return self

    def with_protocol(self, protocol: Protocol) -> "Detector":
        """The same detector with another protocol for its maps and image scores; its thresholds no longer apply and
        become infinite. What a fusion knows about its parts stays."""
        if protocol != self.spec.protocol:
            self.spec = self.spec.model_copy(update={"protocol": protocol, "calibration": None})
            self._take_limits("class")
        return self

    def with_sensitivity(self, sensitivity: float) -> "Detector":
        """Another detector of the same tensors that finds more (above 0.5) or less than as calibrated.

        An image is anomalous when its normalised score is above 1 - sensitivity: 0.75 puts the threshold at the mean of
        the held-out normals, 0 finds nothing, 1 everything. Normalised scores and maps stay as they are.

        Raises:
            UserError: not in [0, 1].
        """
        decision_thresholds(self.thresholds, self.margins, sensitivity)
        other = self._twin()
        other.sensitivity = sensitivity
        return other

    def with_threshold(self, name: ThresholdName) -> "Detector":
        """Another detector of the same tensors that decides by the threshold of the inferred class ("class"), or by one
        for all classes ("global"): for products it was not trained on."""
        other = self._twin()
        other._take_limits(name)
        return other

    def sibling(self, scorer: ScorerConfig) -> "Detector":
        """Another detector of the same tensors with another scorer, not calibrated.

        Raises:
            UserError: the scorer does not fit what was trained.
        """
        other = self._copy(scorer)
        other._take_scorer(other._build_scorer())
        return other

    def scored_by(self, scorer: Scorer) -> "Detector":
        """Another detector of the same tensors for a comparison with a scorer that has its own network. Its maps and
        image scores follow the protocol; it cannot be saved."""
        other = self._copy(InversionConfig())
        other._take_scorer(scorer)
        return other

    def _copy(self, scorer: ScorerConfig) -> "Detector":
        other = self._twin()
        other.spec = self.spec.model_copy(update={"scorer": scorer, "calibration": None})
        other._take_limits("class")
        return other

    def _twin(self) -> "Detector":
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # the copy may replace its thresholds
        other._modules = dict(self._modules)  # and a scorer that is a module
        return other

    def calibrated(self, calibration: Calibration) -> "Detector":
        """The same detector with thresholds and, for a fusion, with the statistics of its parts."""
        self.spec = self.spec.model_copy(update={"calibration": calibration})
        if calibration.parts is not None:
            self._take_scorer(self._build_scorer())
        self._take_limits("class")
        return self

    def _take_limits(self, name: ThresholdName) -> None:
        """Infinite thresholds while uncalibrated."""
        count, calibration, device = len(self.spec.class_names), self.spec.calibration, self.class_means.device
        none = (float("inf"),) * count, (1.0,) * count
        thresholds, margins = calibration.limits(name) if calibration else none
        self.register_buffer("thresholds", torch.tensor(thresholds, device=device), persistent=False)
        self.register_buffer("margins", torch.tensor(margins, device=device), persistent=False)

    def _take_scorer(self, scorer: Scorer) -> None:
        """Some scorers are modules and others are not, which torch keeps in different places."""
        for place in (self._modules, self.__dict__):
            place.pop("scorer", None)
        self.scorer = scorer.to(self.class_means.device) if isinstance(scorer, nn.Module) else scorer

    def _build_scorer(self) -> Scorer:
        spec = self.spec
        shape = (spec.network.channels, spec.network.grid, spec.network.grid)
        trained = Trained(spec.objective, spec.coupling_strength, shape, len(spec.class_names), spec.seed)
        return build_scorer(spec.scorer, trained, spec.calibration.parts if spec.calibration else None)

    def save(self, folder: Path) -> None:
        """Write `detector.json` and `weights.safetensors`. Sensitivity and choice of threshold are not kept."""
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
