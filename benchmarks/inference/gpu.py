"""images/s, latency and memory of the scorers on one GPU: DiT-B and DiT-G in bf16, beside FlowAD's published figures.

    python benchmarks/inference/gpu.py --out benchmarks/inference

Weights are random, and no layer is left at its zero start; images are random pixels that lie on the GPU. "flow" is the
scorer alone, from features to scores on the grid; "end to end" goes from uint8 pixels to image scores and maps, with
the default backbone. Times are medians over calls after two that warm up.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._functorch.config
from torch import nn

from fmad_dist.comparison.choice import choose
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import FeatureConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import DetectorSpec
from fmad_dist.networks.cost import network_cost
from fmad_dist.networks.dit import PRESETS, DiTSpec
from fmad_dist.training.throughput import find_accelerator

SCORERS = {
    "endpoint": (1, 8, 64),
    "inversion:steps=3": (1, 8, 64),
    "reconstruction:steps=3": (64,),
    "mismatch:noises=8:times=8": (1, 16),
    "density:steps=5:probes=10:chunk=16": (1, 16),
}


@dataclass(frozen=True)
class Row:
    preset: str
    compiled: bool
    scorer: str
    batch: int
    flow_ms: float
    end_to_end_ms: float
    peak_gib: float
    flow_mfu: float | None  # of the network's own evaluations; a vector-Jacobian product counts as one

    @property
    def images_per_s(self) -> float:
        return 1000 * self.batch / self.end_to_end_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--presets", nargs="+", default=["B", "G"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--scorers", nargs="+", default=list(SCORERS))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    for preset, compiled in itertools.product(options.presets, (False, True)):
        detector = build(preset, options.precision).move_to(device, compiled)
        for text in options.scorers:
            for batch in SCORERS[text]:
                try:
                    rows.append(measure(detector, preset, compiled, text, batch, options.seconds))
                except Exception as error:  # the others are worth having
                    print(f"{preset} {text} {batch}: {error!r}"[:400], flush=True)
                    continue
                print(rows[-1], flush=True)
                save(rows, options.precision, device, options.out)
        del detector
        torch.compiler.reset()
    print(table(rows))


def build(preset: str, precision: str) -> Detector:
    features = FeatureConfig()
    probe = Detector(spec_of(features, DiTSpec(192, features.grid, 64, 1, 1), "fp32"))
    network = DiTSpec(probe.backbone.num_channels, features.grid, *PRESETS[preset])
    detector = Detector(spec_of(features, network, precision))
    torch.manual_seed(0)
    for module in detector.network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    return detector


def spec_of(features: FeatureConfig, network: DiTSpec, precision: str) -> DetectorSpec:
    (scorer,) = choose("endpoint", DetectorSpec.model_fields["objective"].default).scorers.values()
    return DetectorSpec(
        features=features,
        backbone_digest="0" * 64,
        network=network,
        scorer=scorer,
        precision=precision,  # type: ignore[arg-type]
        protocol=Protocol(),
        seed=0,
        class_names=("random/pixels",),
        manifest_digests={},
        licences={},
        train_step=1,
    )


def measure(detector: Detector, preset: str, compiled: bool, text: str, batch: int, seconds: float) -> Row:
    (config,) = choose(text, detector.spec.objective).scorers.values()
    one = detector.with_calibration(None).with_scorer(config)
    device = detector.class_means.device
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device=device)
    keys = list(range(batch))
    x = torch.randn(batch, *detector_shape(detector), device=device)

    @torch.inference_mode()
    def flow() -> object:
        return one.scorer(one.field, x, keys)

    def whole() -> object:
        return one.score(one.features(images), keys)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    flow_ms, whole_ms = median_ms(flow, seconds, device), median_ms(whole, seconds, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    accelerator = find_accelerator(torch.cuda.get_device_name()) if device.type == "cuda" else None
    flops = network_cost(detector.spec.network, torch.bfloat16).forward_flops * one.scorer.evaluations * batch
    mfu = flops / (flow_ms / 1000) / accelerator.peak_flops if accelerator else None
    return Row(
        preset, compiled, text, batch, round(flow_ms, 3), round(whole_ms, 3), round(peak, 2), mfu and round(mfu, 3)
    )


def detector_shape(detector: Detector) -> tuple[int, int, int]:
    spec = detector.spec.network
    return spec.channels, spec.grid, spec.grid


def median_ms(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    def timed() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    for _ in range(2):
        last = timed()
    count = int(min(100, max(3, 1000 * seconds / last)))
    return statistics.median(timed() for _ in range(count))


def save(rows: list[Row], precision: str, device: torch.device, out: Path) -> None:
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    found = {"device": gpu, "precision": precision, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu.md").write_text(f"{gpu}, {precision}, torch {torch.__version__}\n\n{table(rows)}\n")


def table(rows: list[Row]) -> str:
    lines = [
        "| network | compiled | scorer | batch | flow ms / image | end to end ms / image | images/s | peak GiB | MFU |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        mfu = "" if row.flow_mfu is None else f"{row.flow_mfu:.2f}"
        lines.append(
            f"| DiT-{row.preset} | {'yes' if row.compiled else 'no'} | {row.scorer} | {row.batch} | "
            f"{row.flow_ms / row.batch:.3f} | {row.end_to_end_ms / row.batch:.3f} | {row.images_per_s:.0f} | "
            f"{row.peak_gib:.1f} | {mfu} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
