"""Detectors of others at the same image size, with random weights: only their time is asked."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches
from fmad_dist.detector.detector import Detector
from fmad_dist.networks.build import build_network

BANK_VECTORS = 16_384  # a tenth of the patches of some 600 images on a 16 x 16 grid; PatchCore's of 160 on 32 x 32
Method = Callable[[Tensor], object]


def peers(detector: Detector) -> dict[str, Method]:
    methods: dict[str, Method] = {
        "memory bank on the same features": _bank(detector),
        "FlowAD's loop, same backbone": FlowADLoop(detector, detector.spec.features.backbone).eval(),
        "FlowAD's loop, EfficientNet-B4": FlowADLoop(detector, "efficientnet_b4").eval(),
    }
    if importlib.util.find_spec("anomalib") is None:
        print("anomalib is not installed: EfficientAD and PatchCore are left out")
        return methods
    return methods | {"EfficientAD-S (anomalib)": _efficient_ad(), "PatchCore (anomalib)": _patchcore()}


def _bank(detector: Detector) -> Method:
    vectors = torch.randn(BANK_VECTORS, detector.backbone.num_channels, generator=torch.Generator().manual_seed(0))
    return detector.scored_by(BankScorer([MemoryBank(vectors)], Patches(side=3)))


class FlowADLoop(nn.Module):
    """What FlowAD describes, written plainly: stages of a backbone resized to 16 x 16 and concatenated, three Euler
    steps from data to noise by a DiT of the size of the detector's that is told the true class, squared noise, resized
    to the image."""

    def __init__(self, detector: Detector, backbone: str, steps: int = 3) -> None:
        super().__init__()
        import timm

        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(0, 1, 2, 3), pretrained=False)
        channels = sum(self.backbone.feature_info.channels())
        spec = replace(detector.spec.network, channels=channels, grid=16, num_classes=15)  # type: ignore[type-var]
        self.network = build_network(spec)
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - 0.5) / 0.25
        maps = [functional.interpolate(stage, size=(16, 16), mode="bilinear") for stage in self.backbone(pixels)]
        x = torch.cat(maps, dim=1)
        labels = torch.zeros(len(x), dtype=torch.long)
        for step in range(self.steps):
            t = torch.full((len(x),), 1 - step / self.steps)
            x = x - self.network(x, t, labels) / self.steps
        scores = x.square().sum(dim=1, keepdim=True)
        return functional.interpolate(scores, size=images.shape[-2:], mode="bilinear")


def _efficient_ad() -> Method:
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    model = EfficientAdModel().eval()
    return lambda images: model(images.float() / 255)


def _patchcore() -> Method:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["layer2", "layer3"], pre_trained=False).eval()
    model.memory_bank = torch.randn(BANK_VECTORS, 1536)
    return lambda images: model((images.float() / 255 - 0.5) / 0.25)
