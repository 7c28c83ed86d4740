"""What a process sets before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmad_dist.base.process import SPINS, share_cores

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_sleep_soon_unless_the_user_has_chosen(
    given: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    share_cores()
    assert environment == found


def test_entry_points_import_no_torch_before_that() -> None:
    """OpenMP reads its settings when torch is loaded."""
    modules = ["fmad_dist.cli", *(f"launcher.{path.stem}" for path in (ROOT / "launcher").glob("*.py"))]
    assert "launcher.train" in modules
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0
