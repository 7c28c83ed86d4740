"""Which code runs: fmad's version and its git commit, for reports and for the tags of runs."""

import json
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import fmad_dist

DIGITS = 12  # of a commit


def code_version() -> str:
    """fmad's version, with the commit when it runs from a git checkout or was installed from one."""
    commit = code_commit()
    return f"fmad {fmad_dist.__version__}" + (f", commit {commit}" if commit else ", commit not known")


def code_commit() -> str:
    """The commit alone, marked if files differ from it; empty if it is not known."""
    return _checkout_commit(Path(fmad_dist.__file__).parent) or _installed_commit()


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
    return f"{commit[:DIGITS]}{' with local changes' if changes else ''}" if commit else ""


def _installed_commit() -> str:
    """The commit that pip notes when it installs from a repository (PEP 610)."""
    try:
        noted = Distribution.from_name("fmad-dist").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))[:DIGITS]
