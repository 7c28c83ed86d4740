"""Which code and which detector made the numbers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import fmad_dist
from fmad_dist.base import version as module
from fmad_dist.base.version import code_version
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.provenance import configuration, provenance
from fmad_dist.stream.mixture import Mixture


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose package folder is taken for fmad's."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "one")
    monkeypatch.setattr(fmad_dist, "__file__", str(package / "__init__.py"))
    return package


def test_a_checkout_names_its_commit_and_its_changes(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert code_version() == f"fmad {fmad_dist.__version__}, commit {commit}"
    (checkout.parent / "notes.txt").write_text("not part of the package")
    assert code_version().endswith(commit)
    (checkout / "__init__.py").write_text("changed = True")
    assert code_version().endswith(f"{commit} with local changes")


def test_a_package_in_another_projects_repository_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(fmad_dist, "__file__", str(installed / "__init__.py"))
    monkeypatch.setattr(module, "_installed_commit", lambda: "")
    assert code_version() == f"fmad {fmad_dist.__version__}, commit not known"
    monkeypatch.setattr(module, "_installed_commit", lambda: "abc")
    assert code_version().endswith("commit abc")


def test_facts_name_model_weights_and_manifests(
    make_detector: Callable[..., Detector], tiny_mixture: Mixture, tmp_path: Path
) -> None:
    make_detector((1.0,)).save(tmp_path)
    detector = Detector.load(tmp_path)
    facts = provenance(detector, tiny_mixture, "models:/fmad/3")
    assert facts["Model"] == "models:/fmad/3"
    assert facts["Weights"] == f"sha256 {detector.spec.weights_sha256[:12]}, after 10 training steps"
    assert facts["Protocol"] == detector.spec.protocol.title
    assert facts["Trained on"] == "toy, manifest 111111111111"
    assert facts["Tested on"] == f"tiny, manifest {tiny_mixture.datasets[0].manifest.digest[:12]}"
    settings = json.loads(configuration(detector.spec))
    assert settings["scorer"]["steps"] == 2
    assert "calibration" not in settings
