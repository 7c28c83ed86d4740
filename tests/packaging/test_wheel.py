"""What `python -m build` makes, installed into an environment of its own that does not see the checkout."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fmad_dist
from tests.support.small_parts import build_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
VERSION = fmad_dist.__version__
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made of it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], check=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"fmad_dist-{VERSION}-py3-none-any.whl"


class Installed:
    """An environment with the wheel beside the libraries of this one, and an empty folder to work in."""

    def __init__(self, wheel: Path, root: Path) -> None:
        venv, self.folder = root / "venv", root / "empty"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        self.bin = venv / "bin"
        (packages,) = venv.glob("lib/python*/site-packages")
        # a path file is read in a site folder alone: the one that leads to the checkout lies in the added folder
        (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        python = str(self.bin / "python")
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, str(wheel)], check=True)
        self.packages = packages
        self.folder.mkdir()

    def run(self, program: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        left_out = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "VIRTUAL_ENV")
        environment = {
            name: value for name, value in os.environ.items() if name not in left_out and not name.startswith("MLFLOW_")
        }
        done = subprocess.run(
            [str(self.bin / program), *words],
            cwd=self.folder,
            env=environment | {"PYTHONNOUSERSITE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def fmad(self, *words: str) -> str:
        return self.run("fmad", *words).stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def files_of(*folders: str) -> set[str]:
    """Files of the checkout, relative to it."""
    found = (file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file())
    return {file.relative_to(ROOT).as_posix() for file in found if "__pycache__" not in file.parts}


def test_the_wheel_holds_what_belongs_to_fmad(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"fmad_dist", "data_tools", f"fmad_dist-{VERSION}.dist-info"}
    wanted = files_of("fmad_dist", "data_tools") | {f"fmad_dist/{name}" for name in files_of("configs")}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    some = ["report/published.yaml", "report/templates/report.html.j2", "view/page/page.html"]
    assert {f"fmad_dist/{name}" for name in [*some, "configs/demo.yaml"]} <= wanted


def test_the_sdist_holds_the_repository(built: Path) -> None:
    with tarfile.open(built / f"fmad_dist-{VERSION}.tar.gz") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "launcher/train.py"} <= names
    assert files_of("fmad_dist", "data_tools", "configs", "tests") <= names


def test_an_index_would_take_them(built: Path) -> None:
    files = [str(file) for file in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_what_is_imported_is_installed_with_it() -> None:
    """Without an extra; whoever imports what extras bring says so where it is missing."""
    installed, optional = without_extras(), {"onnx", "onnxruntime", "onnxscript", "anomalib"}
    distributions = packages_distributions()
    files = (ROOT / name for name in files_of("fmad_dist", "data_tools") if name.endswith(".py"))
    tops = {top: file for file in files for top in imported_tops(file)}
    known = {*sys.stdlib_module_names, *optional, "fmad_dist", "data_tools"}
    known |= {top for top in tops if {canonicalize_name(one) for one in distributions.get(top, ())} & installed}
    assert {top: file for top, file in tops.items() if top not in known} == {}


def without_extras() -> set[str]:
    """The distributions that fmad requires, and those that they require in turn."""
    found, left = set[str](), [Requirement(text) for text in PROJECT["dependencies"]]
    while left:
        one = left.pop()
        if (name := canonicalize_name(one.name)) not in found:
            found.add(name)
            left += [new for text in requires(name) or () if applies(new := Requirement(text), one.extras)]
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})


def imported_tops(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_it_is_imported_from_where_it_was_installed(installed: Installed) -> None:
    program = "import data_tools, fmad_dist; print(data_tools.__file__, fmad_dist.__file__, fmad_dist.__version__)"
    folder = installed.packages
    found = [f"{folder}/data_tools/__init__.py", f"{folder}/fmad_dist/__init__.py", VERSION]
    assert installed.run("python", "-c", program).stdout.split() == found
    others = "from importlib.util import find_spec; print(find_spec('launcher'), find_spec('tests'))"
    assert installed.run("python", "-c", others).stdout.split() == ["None", "None"]
    assert installed.fmad("--version").startswith(f"fmad {VERSION}")


def test_shipped_configurations_are_found_by_name(installed: Installed, tiny_url: str) -> None:
    benchmarks = f"benchmarks={{tiny: {{manifests: [{tiny_url}]}}}}"
    small = ("run.features.image_size=64", "run.features.grid=4")
    plan = installed.fmad("bench", "plan", "--config", "benchmarks/five", benchmarks, *small)
    assert "fmad train --config bench/five/configs/tiny-" in plan
    unknown = "dem: no such file, and no configuration that is shipped: benchmarks/five, "
    for words, sentence in {
        ("train", "--config", "dem"): unknown,
        ("registry", "promote", "models:/none/1", "--gate", "registry/gate"): "no registry is there",  # after the gate
    }.items():
        refused = installed.run("fmad", *words, check=False)
        assert refused.returncode == 2
        assert sentence in refused.stderr


def test_the_demo(installed: Installed, tmp_path: Path) -> None:
    """Conversion, training under DeepSpeed, evaluation with its report, registry, prediction, each started anew."""
    build_dataset(tmp_path, "toy", {"bolt": 6, "nut": 6}, side=256)
    small = ("train.steps=4", "train.global_batch=4", "train.warmup_samples=4")
    output = installed.fmad("demo", "--source", str(tmp_path / "toy-tree"), "--processes", "1", *small)
    assert re.match(r"demo: image_auroc=\d\.\d+ .* model=models:/fmad/1 report=demo/results/", output.splitlines()[-1])
    assert (installed.folder / "demo/results/toy-tree/report.html").stat().st_size > 100_000
    assert (installed.folder / "demo/predictions/toy-tree/scores.parquet").is_file()
