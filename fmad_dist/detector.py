"""The detector: pre-processing, features, whitening, flow, scorer, calibration in one module.

Evaluation, prediction and the registry use this module and nothing beside it, so they cannot disagree. On disk it is a
folder with `detector.json` and `weights.safetensors`; loading needs no network, no run and no backbone package.
"""

import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fmad_dist.config import FeatureConfig, ObjectiveConfig
from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.features.backbones import Backbone, chunk_for
from fmad_dist.features.prepare import feature_spec
from fmad_dist.features.whitening import Whitening
from fmad_dist.flow.fields import Field
from fmad_dist.flow.noise import content_keys
from fmad_dist.flow.paths import PATHS
from fmad_dist.networks.build import NetworkSpec, build_network
from fmad_dist.scoring.build import Trained, build_scorer, check_draws
from fmad_dist.scoring.calibration import Calibration, nearest_class
from fmad_dist.scoring.config import InversionConfig, ScorerConfig
from fmad_dist.scoring.interface import Scorer
from fmad_dist.scoring.maps import finish

SPEC_NAME = "detector.json"
WEIGHTS_NAME = "weights.safetensors"


class DetectorSpec(BaseModel):
    """Everything about a detector but its tensors: the content of `detector.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["fmad-detector/1"] = "fmad-detector/1"
    features: FeatureConfig
    backbone_digest: str
    network: NetworkSpec
    objective: ObjectiveConfig = ObjectiveConfig()
    coupling_strength: float = 0.0  # a of the training, -E<e, x> / E|x|^2
    scorer: ScorerConfig
    protocol: Protocol
    seed: int
    class_names: tuple[str, ...]
    manifest_digests: dict[str, str]  # dataset name -> digest of the manifest it was trained on
    licences: dict[str, str]  # dataset name -> licence of the training data
    train_step: int
    calibration: Calibration | None = None
    weights_sha256: str = ""  # of weights.safetensors; set when the detector is saved


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector says about a batch of images."""

    scores: Tensor  # float32 [B], higher is more anomalous
    maps: Tensor  # float32 [B, S, S], S = protocol.map_size
    classes: Tensor  # int64 [B], inferred class, position in spec.class_names
    thresholds: Tensor  # float32 [B], of the inferred class; inf while uncalibrated

    @property
    def anomalous(self) -> Tensor:
        """Decisions, bool [B]."""
        return self.scores > self.thresholds


class Detector(nn.Module):
    """`detector(images)` for uint8 RGB [B, 3, S, S], S = spec.features.image_size; no label is needed."""

    class_means: Tensor
    thresholds: Tensor

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(feature_spec(spec.features))
        self.whitening = Whitening(self.backbone.num_channels, spec.features.norm)
        self.network = build_network(spec.network)
        self.field = Field(self.network, PATHS[spec.objective.path])
        self.scorer = self._build_scorer()
        self.register_buffer("class_means", torch.zeros(len(spec.class_names), self.backbone.num_channels))
        thresholds = spec.calibration.thresholds if spec.calibration else (float("inf"),) * len(spec.class_names)
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)
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
        scores, maps = finish(self.scorer(self.field, x, keys), self.spec.protocol, self.spec.scorer)
        classes = nearest_class(x.mean(dim=(2, 3)), self.class_means)
        return Detections(scores, maps, classes, self.thresholds[classes])

    def place(self, device: torch.device) -> "Detector":
        """Move to a device and let the backbone run as many images at a time as suit it."""
        self.backbone.chunk = chunk_for(device)
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
            self.scorer = self._build_scorer()
            self.thresholds = torch.full_like(self.thresholds, float("inf"))
        return self

    def with_protocol(self, protocol: Protocol) -> "Detector":
        """The same detector with another protocol for its maps and image scores; its thresholds no longer apply and
        become infinite. What a fusion knows about its parts stays."""
        if protocol != self.spec.protocol:
            self.spec = self.spec.model_copy(update={"protocol": protocol, "calibration": None})
            self.thresholds = torch.full_like(self.thresholds, float("inf"))
        return self

    def sibling(self, scorer: ScorerConfig) -> "Detector":
        """Another detector of the same tensors with another scorer, not calibrated.

        Raises:
            UserError: the scorer does not fit what was trained.
        """
        other = self._copy(scorer)
        other.scorer = other._build_scorer()
        return other

    def scored_by(self, scorer: Scorer) -> "Detector":
        """Another detector of the same tensors for a comparison with a scorer that has its own network. Its maps and
        image scores follow the protocol; it cannot be saved."""
        other = self._copy(InversionConfig())
        other.scorer = scorer
        return other

    def _copy(self, scorer: ScorerConfig) -> "Detector":
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # the copy may replace its thresholds
        other.spec = self.spec.model_copy(update={"scorer": scorer, "calibration": None})
        other.thresholds = torch.full_like(self.thresholds, float("inf"))
        return other

    def calibrated(self, calibration: Calibration) -> "Detector":
        """The same detector with thresholds and, for a fusion, with the statistics of its parts."""
        self.spec = self.spec.model_copy(update={"calibration": calibration})
        self.scorer = self._build_scorer()
        self.thresholds = torch.tensor(calibration.thresholds, device=self.thresholds.device)
        return self

    def _build_scorer(self) -> Scorer:
        spec = self.spec
        dimensions = spec.network.channels * spec.network.grid**2
        trained = Trained(spec.objective, spec.coupling_strength, dimensions, spec.seed)
        return build_scorer(spec.scorer, trained, spec.calibration.parts if spec.calibration else None)

    def save(self, folder: Path) -> None:
        """Write `detector.json` and `weights.safetensors`; the JSON comes last and is replaced atomically."""
        from safetensors.torch import save

        from fmad_dist.storage import Store

        store = Store(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        data = save(tensors)
        spec = self.spec.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()})
        store.write(WEIGHTS_NAME, data)
        store.write(SPEC_NAME, json.dumps(spec.model_dump(mode="json"), indent=1).encode())

    @classmethod
    def load(cls, source: str | Path) -> "Detector":
        """From a detector folder, a run directory, or a registry URI such as `models:/fmad@candidate`.

        Raises:
            UserError: nothing is there, or the files do not fit together.
        """
        folder = locate_detector(str(source))
        spec = read_spec(folder)
        detector = cls(spec)
        detector.load_state_dict(_read_weights(folder / WEIGHTS_NAME, spec.weights_sha256, detector.state_dict()))
        return detector


def read_spec(folder: Path) -> DetectorSpec:
    """The content of `detector.json`.

    Raises:
        UserError: it is damaged or of another version.
    """
    try:
        return DetectorSpec.model_validate_json((folder / SPEC_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder / SPEC_NAME}: not a readable detector ({first_line(error)}).") from None


def locate_detector(source: str) -> Path:
    """The local folder that holds `detector.json`, downloading a registry model when `source` is a models:/ URI."""
    if source.startswith(("models:", "runs:")):
        from fmad_dist.registry.versions import download_model

        root = download_model(source)
        found = sorted(root.rglob(SPEC_NAME))
        if not found:
            raise UserError(f"{source}: this registered model was not made by fmad (no {SPEC_NAME} in it).")
        return found[0].parent
    for folder in (Path(source), Path(source) / "detector"):
        if (folder / SPEC_NAME).is_file():
            return folder
    raise UserError(
        f"{source}: no detector here (no {SPEC_NAME}); give a run directory of a finished training, a detector folder "
        "or a URI like models:/fmad@candidate."
    )


def _read_weights(path: Path, sha256: str, wanted: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable weights ({first_line(error)}); export the detector again.") from None
    bad = _misfits(tensors, wanted)
    if not bad:
        _check_digest(path, sha256)
    if bad:
        raise UserError(
            f"{path}: its tensors do not fit {SPEC_NAME} (first: {bad[0]}); the folder mixes two detectors."
        )
    return tensors


def check_intact(folder: Path, spec: DetectorSpec) -> None:
    """Raises:
    UserError: the weights are not there, or not those that `detector.json` was written with.
    """
    path = folder / WEIGHTS_NAME
    try:
        _check_digest(path, spec.weights_sha256)
    except OSError as error:
        raise UserError(f"{path}: not readable weights ({first_line(error)}); export the detector again.") from None


def _check_digest(path: Path, sha256: str) -> None:
    """A detector that was never saved by this version has no digest to check."""
    with open(path, "rb") as file:
        if sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise UserError(f"{path}: changed after it was written; export the detector again.")


def _misfits(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    names: Iterable[str] = sorted(tensors.keys() | wanted.keys())
    return [n for n in names if n not in tensors or n not in wanted or tensors[n].shape != wanted[n].shape]
