"""launcher/train.py with a gradient that is not finite in the parts of the stream that belong to the steps in
FMAD_TEST_BAD_STEPS, on one rank only: a hardware fault cannot be caused otherwise."""

import os
import runpy
from pathlib import Path

from fmad_dist.flow.objective import FlowMatching

BAD_STEPS = {int(step) for step in os.environ["FMAD_TEST_BAD_STEPS"].split(",")}
GLOBAL_BATCH = 8

loss = FlowMatching.loss


def faulty_loss(self, network, x, positions, *rest):  # type: ignore[no-untyped-def]
    found = loss(self, network, x, positions, *rest)
    step = positions[0] // GLOBAL_BATCH
    is_bad = step in BAD_STEPS and os.environ["RANK"] == "1"
    return found * float("nan") if is_bad else found


FlowMatching.loss = faulty_loss  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[2] / "launcher" / "train.py"), run_name="__main__")
