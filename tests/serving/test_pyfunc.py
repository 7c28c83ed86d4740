"""The file that MLflow copies to every registered version."""

import ast
import runpy
import sys
from pathlib import Path
from types import ModuleType

import mlflow
import pytest

import fmad_dist.serving
from fmad_dist.serving.model import DetectorModel

PYFUNC = Path(fmad_dist.serving.__file__).with_name("pyfunc.py")


def test_it_gives_mlflow_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(mlflow.models, "set_model", given.append)
    runpy.run_path(str(PYFUNC))
    assert [type(one) for one in given] == [DetectorModel]


def test_it_needs_one_name_that_stays() -> None:
    """A version that was registered once is loaded by every later fmad; read CHANGELOG.md before this is changed."""
    imports = [
        node for node in ast.walk(ast.parse(PYFUNC.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [ast.unparse(one) for one in imports] == ["import mlflow", "from fmad_dist.serving import served_model"]


def test_where_the_name_is_missing_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fmad_dist.serving", ModuleType("fmad_dist.serving"))  # that of 0.1
    with pytest.raises(ImportError, match=r"served_model.*needs fmad-dist 0\.2 or later, or register its run again"):
        runpy.run_path(str(PYFUNC))
