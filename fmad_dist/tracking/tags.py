"""Where a run comes from, as tags of its MLflow run: code, data, launcher, world."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.code_version import code_commit

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
