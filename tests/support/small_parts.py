"""Small datasets and detectors, made in a moment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data_tools.conversion.convert import Conversion, convert

if TYPE_CHECKING:
    from fmad_dist.detector.detector import Detector
    from fmad_dist.features.backbones import Backbone
    from fmad_dist.scoring.calibration import Calibration

SIDE = 64
TRAIN_COUNTS = {"bolt": 5, "nut": 7, "washer": 12}

MakeDetector = Callable[..., "Detector"]


def save_image(path: Path, seed: int, side: int = SIDE) -> Path:
    """Smooth colour blobs: unlike white noise they give every class and image features of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def build_dataset(root: Path, name: str = "tiny", counts: dict[str, int] | None = None, side: int = SIDE) -> str:
    """Convert a tree with `counts` training images per class and 1 + 1 test images; returns the URL (a local path)."""
    for number, (class_name, count) in enumerate((counts or TRAIN_COUNTS).items()):
        folder = root / f"{name}-tree" / class_name
        for image in range(count):
            save_image(folder / "train" / "good" / f"{image:03d}.png", 1000 * number + image, side)
        save_image(folder / "test" / "good" / "000.png", 1000 * number + 500, side)
        save_image(folder / "test" / "hole" / "000.png", 1000 * number + 600, side)
        mask = np.zeros((side, side), np.uint8)
        mask[5:9, 6:12] = 255
        (folder / "ground_truth" / "hole").mkdir(parents=True)
        Image.fromarray(mask).save(folder / "ground_truth" / "hole" / "000_mask.png")
    out = root / name
    source = root / f"{name}-tree"
    convert(Conversion(layout="mvtec", dataset=name, source=source, out=str(out), size=side, num_workers=1))
    return str(out)


def calibration_of(thresholds: Sequence[float], false_alarm_rate: float = 0.01) -> "Calibration":
    """Margins of 0.5 and a threshold of 1.5 for all classes."""
    from fmad_dist.scoring.calibration import Calibration

    count = len(thresholds)
    return Calibration(tuple(thresholds), (0.5,) * count, (4,) * count, 1.5, 0.5, false_alarm_rate)


def build_detector(backbone: "Backbone", thresholds: Sequence[float], **changes: object) -> "Detector":
    """A detector of as many classes as `thresholds`; `changes` replace fields of its specification."""
    import torch

    from fmad_dist.config.protocol import Protocol
    from fmad_dist.config.run import FeatureConfig
    from fmad_dist.detector.detector import Detector
    from fmad_dist.detector.files import DetectorSpec
    from fmad_dist.networks.dit import DiTSpec
    from fmad_dist.scoring.inversion import InversionConfig

    spec = backbone.spec
    fields: dict[str, object] = {
        "features": FeatureConfig(backbone=spec.backbone, taps=spec.taps, grid=spec.grid, image_size=spec.image_size),
        "backbone_digest": "0" * 64,
        "network": DiTSpec(backbone.num_channels, spec.grid, width=32, depth=1, heads=2),
        "scorer": InversionConfig(steps=2),
        "protocol": Protocol(map_size=32, top_percent=5.0),
        "seed": 3,
        "class_names": tuple(f"toy/{number}" for number in range(len(thresholds))),
        "manifest_digests": {"toy": "1" * 64},
        "licences": {"toy": "CC0"},
        "train_step": 10,
        "calibration": calibration_of(thresholds),
    }
    detector = Detector(DetectorSpec(**(fields | changes)))
    detector.backbone.load_state_dict(backbone.state_dict())
    generator = torch.Generator().manual_seed(7)
    for parameter in detector.network.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    detector.whitening.std.fill_(2.0)
    detector.class_means.copy_(torch.randn(detector.class_means.shape, generator=generator))
    return detector
