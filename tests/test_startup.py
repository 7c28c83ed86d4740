"""What a process sets before torch is imported."""

import os
import subprocess
import sys

import pytest

from fmad_dist.startup import TURNS, share_cores


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": TURNS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_sleep_soon_unless_the_user_has_chosen(
    given: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert {name: os.environ[name] for name in names if name in os.environ} == found
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is undone after the test


def test_entry_points_import_no_torch_before_that() -> None:
    """OpenMP reads its settings when torch is loaded."""
    program = "import sys, fmad_dist.cli, fmad_dist.launch, fmad_dist.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
