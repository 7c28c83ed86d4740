"""No scorer mixes tensors of the CPU with those of a GPU, checked without one; their values are not.

Density is left out: its gradients are computed by threads that need a GPU.
"""

from dataclasses import fields

import pytest
import torch
from small_parts import SIDE, MakeDetector

from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches
from fmad_dist.config import ObjectiveConfig
from fmad_dist.scoring.config import (
    SCORER_CONFIGS,
    DeviationConfig,
    EndpointConfig,
    InversionConfig,
    MismatchConfig,
    ReconstructionConfig,
    ScorerConfig,
)
from fmad_dist.scoring.coreset import coreset
from fmad_dist.scoring.deviation import Deviation, Normality
from fmad_dist.scoring.fusion import Fusion, PartStatistics

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by torch itself
PLAIN = [config() for name, config in SCORER_CONFIGS.items() if name != "density"]
WAYS = [
    InversionConfig(solver="heun"),
    ReconstructionConfig(start="invert"),
    MismatchConfig(aggregate="quantile"),
    EndpointConfig(postprocess="paper"),
    DeviationConfig(memory=0, locations=False),
    DeviationConfig(covariance=False, memory=20),  # fewer than there are, so they are chosen
]
OBJECTIVES = {"residual": ObjectiveConfig(path="reversed"), "ddim": ObjectiveConfig(path="vp")}


def test_a_tensor_left_on_the_cpu_is_found(absent_gpu: torch.device) -> None:
    """Or the tests below would find nothing."""
    there, here = torch.ones(2, 3, device=absent_gpu), torch.ones(2, 3)
    assert (there @ here.to(absent_gpu).T).device == absent_gpu
    assert float((here + 1).sum()) == 12.0
    with pytest.raises(RuntimeError, match="same device"):
        there @ here.T


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scorer", PLAIN + WAYS, ids=lambda scorer: scorer.name)
def test_scorers_on_a_gpu(
    make_detector: MakeDetector, absent_gpu: torch.device, scorer: ScorerConfig, precision: str
) -> None:
    objective = OBJECTIVES.get(scorer.name, ObjectiveConfig())
    detector = make_detector((1.0, 2.0), scorer=scorer, objective=objective, precision=precision).place(absent_gpu)
    x = detector.features(torch.zeros(6, 3, SIDE, SIDE, dtype=torch.uint8))
    if isinstance(detector.scorer, Fusion):
        assert detector.scorer.sums(detector.field, x, range(6)).device == absent_gpu
        detector.scorer.statistics = (PartStatistics(0.0, 1.0),) * 2
    if isinstance(detector.scorer, Deviation):
        fit(detector.scorer, detector.scorer.part.vectors(detector.field, x), detector.class_means)
    found = detector.score(x, list(range(6)))
    for name in ("scores", "maps", "classes", "anomalous", "normalised", "relative_maps"):
        assert getattr(found, name).device == absent_gpu, name


def fit(scorer: Deviation, vectors: torch.Tensor, class_means: torch.Tensor) -> None:
    """As after training: what each rank found goes through the CPU."""
    found = scorer.normality(vectors.half())
    scorer.take(class_means, [Normality(*(getattr(found, field.name).cpu() for field in fields(found)))] * 2)


@pytest.mark.parametrize("per_class", [False, True])
def test_memory_banks_on_a_gpu(absent_gpu: torch.device, per_class: bool) -> None:
    patches = Patches(3, torch.tensor([0, 2], device=absent_gpu))
    x = torch.zeros(3, 4, 5, 5).to(absent_gpu)
    kept = coreset(patches(x).flatten(0, 1), 10, seed=0)
    scorer = BankScorer([MemoryBank(kept)] * 2, patches, neighbours=3, per_class=per_class).told([0, 1, 1])
    assert scorer(lambda x, t: x, x, range(3)).device == absent_gpu
