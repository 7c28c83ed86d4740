"""The import of DeepSpeed; what is checked of its insides is tested with those who use it."""

import subprocess
import sys

import pytest

from fmad_dist.base.deepspeed import import_deepspeed
from fmad_dist.base.errors import UserError

PROGRAM = """
import os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from fmad_dist.base.deepspeed import import_deepspeed
import_deepspeed()
import deepspeed
from deepspeed.comm.torch import build_shm_op
assert build_shm_op() is None, "it would be compiled"
assert "mlflow" not in sys.modules
"""


def test_nothing_is_compiled_and_nothing_else_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_deepspeed_that_trains_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import_deepspeed()
    import deepspeed

    monkeypatch.setattr(deepspeed, "__version__", "0.18.9+abc")
    with pytest.raises(
        UserError, match=r"^DeepSpeed 0\.18\.9\+abc: is too old; .* 0\.19\.0 to .*, install one of these\.$"
    ):
        import_deepspeed()
