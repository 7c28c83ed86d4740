"""Image scores that depend on all test images, as some protocols of others have them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.results import ScoreRow
from fmad_dist.evaluation.state import ClassState, dataset_of

TINY = 1e-8  # keeps equal scores finite


def final_rows(states: Mapping[str, ClassState], protocol: Protocol) -> dict[str, list[ScoreRow]]:
    """The image scores of every class as the protocol has them, in the order of sample ids."""
    rows = {name: sorted(state.scores.values()) for name, state in sorted(states.items())}
    if not protocol.needs_map_sum:
        return rows
    scaled: dict[str, list[ScoreRow]] = {}
    for dataset in sorted({dataset_of(name) for name in rows}):
        own = [row for name, found in rows.items() if dataset_of(name) == dataset for row in found]
        scores = _scaled(row.score for row in own) + _scaled(row.map_sum for row in own)
        for row, score in zip(own, scores.tolist(), strict=True):
            scaled.setdefault(row.class_name, []).append(replace(row, score=score))
    return scaled


def _scaled(values: Iterable[float]) -> np.ndarray:
    found = np.fromiter(values, dtype=np.float64)
    return (found - found.min()) / (found.max() - found.min() + TINY)
