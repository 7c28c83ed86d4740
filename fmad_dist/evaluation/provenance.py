"""Where the numbers of an evaluation come from: model, data, settings and code."""

import json
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import fmad_dist
from fmad_dist.detector import Detector, DetectorSpec
from fmad_dist.networks.build import describe_network
from fmad_dist.stream.mixture import Mixture

_SHOWN = 12  # hexadecimal digits of a digest


def provenance(detector: Detector, mixture: Mixture, model: str) -> dict[str, str]:
    """The facts of a report by their names. Nothing in them depends on how many processes evaluated."""
    spec = detector.spec
    digests = {name: digest[:_SHOWN] for name, digest in spec.manifest_digests.items()}
    return {
        "Model": model,
        "Weights": f"sha256 {spec.weights_sha256[:_SHOWN]}, after {spec.train_step} training steps",
        "Scorer": " ".join(f"{key}={value}" for key, value in spec.scorer.model_dump().items()),
        "Network evaluations per image": str(detector.scorer.evaluations),
        "Network": describe_network(spec.network),
        "Objective": f"path {spec.objective.path}, coupling {spec.objective.coupling}",
        "Backbone": f"{spec.features.backbone} (weights {spec.backbone_digest[:_SHOWN]})",
        "Trained on": ", ".join(f"{name}, manifest {digest}" for name, digest in digests.items()),
        "Tested on": ", ".join(f"{d.name}, manifest {d.manifest.digest[:_SHOWN]}" for d in mixture.datasets),
        "Licences": ", ".join(f"{name}: {licence}" for name, licence in spec.licences.items()),
        "Code": code_version(),
    }


def configuration(spec: DetectorSpec) -> str:
    """The detector's settings as JSON: `detector.json` without what the facts say and without the calibration."""
    left_out = {"manifest_digests", "licences", "class_names", "calibration", "weights_sha256"}
    return json.dumps(spec.model_dump(mode="json", exclude=left_out), indent=2)


def code_version() -> str:
    """fmad's version, with the commit when it runs from a git checkout or was installed from one."""
    commit = _checkout_commit(Path(fmad_dist.__file__).parent) or _installed_commit()
    return f"fmad {fmad_dist.__version__}" + (f", commit {commit}" if commit else ", commit not known")


def _checkout_commit(package: Path) -> str:
    """The commit of the repository that tracks this package, marked if the package differs from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):  # no git here
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return ""  # another project's repository may lie around an installed package
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    return f"{commit[:_SHOWN]}{' with local changes' if changes else ''}" if commit else ""


def _installed_commit() -> str:
    """The commit that pip notes when it installs from a repository (PEP 610)."""
    try:
        noted = Distribution.from_name("fmad-dist").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))[:_SHOWN]
