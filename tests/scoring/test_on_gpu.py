"""No scorer mixes tensors of the CPU with those of a GPU, checked without one; their values are not.

Density is left out: its gradients are computed by threads that need a GPU.
"""

from collections.abc import Iterator

import pytest
import torch

from fmad_dist.base.world import World
from fmad_dist.comparison.bank import BankScorer, MemoryBank, Patches
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerConfig, default_config, scorer_names
from fmad_dist.detector.detector import Detector
from fmad_dist.scoring.deviation import DeviationConfig
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.fusion import Fusion
from fmad_dist.scoring.interface import PartStatistics
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.scoring.memory import coreset
from fmad_dist.scoring.mismatch import MismatchConfig
from fmad_dist.scoring.reconstruction import ReconstructionConfig
from tests.support.small_parts import SIDE, MakeDetector

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by torch itself
PLAIN = [default_config(name) for name in scorer_names() if name != "density"]
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
    detector = make_detector((1.0, 2.0), scorer=scorer, objective=objective, precision=precision).move_to(absent_gpu)
    x = detector.features(torch.zeros(6, 3, SIDE, SIDE, dtype=torch.uint8))
    if isinstance(detector.scorer, Fusion):  # its statistics are values, which are not there
        assert detector.scorer.sums(detector.field, x, range(6)).device == absent_gpu
        detector = detector.scored_by(detector.scorer.with_statistics((PartStatistics(0.0, 1.0),) * 2))
    else:
        detector = detector.scored_by(detector.scorer.fit(Normals(detector, x)))
    found = detector.score(x, list(range(6)))
    for name in ("scores", "maps", "classes", "anomalous", "normalised", "relative_maps"):
        assert getattr(found, name).device == absent_gpu, name


class Normals:
    """Features that are normal images of both classes, all on the GPU."""

    def __init__(self, detector: Detector, x: torch.Tensor) -> None:
        self.world = World()
        self.field = detector.field
        self.class_names = detector.spec.class_names
        self.class_means = detector.class_means
        self.training_counts = [len(x)] * 2
        self.num_locations = x[0, 0].numel()
        self.x = x

    def training(self, class_number: int, count: int) -> Iterator[torch.Tensor]:
        return iter([self.x])

    def held_out(self) -> Iterator[tuple[torch.Tensor, list[int]]]:
        raise NotImplementedError


@pytest.mark.parametrize("per_class", [False, True])
def test_memory_banks_on_a_gpu(absent_gpu: torch.device, per_class: bool) -> None:
    patches = Patches(3, torch.tensor([0, 2], device=absent_gpu))
    x = torch.zeros(3, 4, 5, 5).to(absent_gpu)
    kept = coreset(patches(x).flatten(0, 1), 10, seed=0)
    scorer = BankScorer([MemoryBank(kept)] * 2, patches, neighbours=3, per_class=per_class).for_classes([0, 1, 1])
    assert scorer(lambda x, t: x, x, range(3)).device == absent_gpu
