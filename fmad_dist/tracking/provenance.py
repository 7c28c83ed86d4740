"""Where a run comes from, as tags of its MLflow run: code, data, launcher, world."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
LAUNCH_VARIABLES = ("SLURM_JOB_ID", "JOB_COMPLETION_INDEX", "TORCHELASTIC_RUN_ID")
MAX_VALUE = 4900  # MLflow takes 5000 characters


def run_tags(environment: Mapping[str, Any], digests: Mapping[str, str], parent_run: str | None) -> dict[str, str]:
    """`environment` is what the engine says of itself, `digests` the manifest digest of every dataset."""
    tags = {f"fmad.{name}": str(value) for name, value in environment.items() if name != "versions"}
    tags |= {f"fmad.version.{name}": str(value) for name, value in environment.get("versions", {}).items()}
    tags |= {f"fmad.manifest.{name}": digest for name, digest in digests.items()}
    tags |= {f"fmad.launcher.{name}": os.environ[name] for name in LAUNCH_VARIABLES if name in os.environ}
    tags["fmad.launcher"] = Path(sys.argv[0]).name
    commit = code_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    if parent_run:
        tags["mlflow.parentRunId"] = parent_run
    return {name: value[:MAX_VALUE] for name, value in tags.items()}


def code_commit() -> str | None:
    """The git commit of this package's code, with `-dirty` if files differ; None for an installed copy."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
