"""Small evaluations whose reports and tables are tested."""

from dataclasses import replace

import numpy as np

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.regions import Channel, SingleDefects
from fmad_dist.metrics.state import EvaluationState, ScoredImage

SIZE = 32


def scored(name: str, class_name: str, label: int, seed: int, scale: float = 1.0) -> ScoredImage:
    """An image of noise; a defect raises the map by one on a rectangle."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[4:12, 6:20] = label == 1
    anomaly_map = ((rng.normal(size=mask.shape) + mask) * scale).astype(np.float32)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    defect = "<b>dent</b>" if label else "good"
    return ScoredImage(name, class_name, label, defect, float(anomaly_map.max()), anomaly_map, mask, image)


def three_classes(dataset: str = "toy") -> EvaluationState:
    """A class with both labels, one without anomalies, and one of another dataset whose scores are huge."""
    state = EvaluationState(Protocol(map_size=SIZE))
    for i in range(12):
        state.update(scored(f"{dataset}/disc/test/{i}", f"{dataset}/disc", i % 2, i))
        state.update(scored(f"{dataset}/only good/test/{i}", f"{dataset}/only good", 0, 50 + i))
        state.update(scored(f"other/huge/test/{i}", "other/huge", i % 2, 90 + i, scale=10.0 ** (3 * i)))
    return state


def single_defects(native: bool = True) -> EvaluationState:
    """A class whose defects of two types are annotated singly, as in MVTec LOCO AD."""
    state = EvaluationState(Protocol(map_size=SIZE))
    for i in range(12):
        image = scored(f"loco/box/test/{i}", "loco/box", int(i % 3 > 0), i)
        channels = (Channel(image.mask, 40),) if image.label else ()
        kind = ("logical_anomalies", "structural_anomalies")[i % 2] if image.label else "good"
        state.update(replace(image, defect_type=kind, defects=SingleDefects(channels, SIZE, SIZE, native=native)))
    return state
