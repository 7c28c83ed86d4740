from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import mlflow.pyfunc
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.registry import evidence


def test_a_version_of_another_fmad_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that 0.1 kept with a version imports modules that have other names now."""

    def load_model(uri: str) -> NoReturn:
        raise ModuleNotFoundError("No module named 'fmad_dist.errors'")

    monkeypatch.setattr(evidence, "_read", lambda *_: [])
    monkeypatch.setattr(mlflow.pyfunc, "load_model", load_model)
    version: Any = SimpleNamespace(name="fmad", version="3")
    spec = SimpleNamespace(features=SimpleNamespace(image_size=32))
    with pytest.raises(
        UserError, match=r"^models:/fmad/3: .*fmad_dist\.errors.* again: fmad registry register --run RUN"
    ):
        evidence.measure_parity(version, Path("version"), spec, Any, {"a": 1.0}, 1)
