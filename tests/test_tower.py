"""No import runs in a circle, be it lazy or for types alone, and the contract of pyproject.toml knows every package.

import-linter, a part of `make lint`, checks the order of the levels.
"""

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("fmad_dist", "data_tools")

Graph = dict[str, set[str]]


def file_graph(root: Path, tops: tuple[str, ...]) -> Graph:
    """Module -> modules that its file imports anywhere in it."""
    files = {_module(root, file): file for top in tops for file in (root / top).rglob("*.py")}
    return {module: set(_imported(file, files.keys())) - {module} for module, file in files.items()}


def _module(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, modules: object) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in modules else str(node.module) for name in inner]
    return [name for name in names if name in modules]


def package_graph(files: Graph) -> Graph:
    """The same between packages: the first two names of a module."""
    found: Graph = {}
    for module, imported in files.items():
        package = _package(module)
        found.setdefault(package, set()).update({_package(one) for one in imported} - {package})
    return found


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circle(graph: Graph) -> list[str]:
    """One cycle of the graph, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_file_and_no_package_imports_in_a_circle() -> None:
    files = file_graph(ROOT, TOPS)
    assert len(files) > 200
    assert "fmad_dist.training.engine" in files["fmad_dist.training.loop"]
    assert circle(files) == []
    assert circle(package_graph(files)) == []


@pytest.mark.parametrize(
    "back",
    [
        "from pkg.a.one import x",
        "def f():\n    from pkg.a import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.a.one",
    ],
)
def test_a_circle_is_seen(tmp_path: Path, back: str) -> None:
    for name, text in {"a/__init__": "", "a/one": "import pkg.b.two", "b/__init__": "", "b/two": back}.items():
        file = tmp_path / "pkg" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    files = file_graph(tmp_path, ("pkg",))
    assert set(circle(files)) == {"pkg.a.one", "pkg.b.two"}
    assert set(circle(package_graph(files))) == {"pkg.a", "pkg.b"}
    (tmp_path / "pkg/b/two.py").write_text("")
    assert circle(file_graph(tmp_path, ("pkg",))) == []


def test_the_contract_names_every_package() -> None:
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = [package.strip() for layer in contract["layers"] for package in layer.split("|")]
    packages = {f"fmad_dist.{file.parent.name}" for file in (ROOT / "fmad_dist").glob("*/__init__.py")}
    assert sorted(named) == sorted(packages | {"data_tools"})
    loose = [file.name for file in (ROOT / "fmad_dist").glob("*.py")]
    assert loose == ["__init__.py"], "a module beside the packages has no level"
