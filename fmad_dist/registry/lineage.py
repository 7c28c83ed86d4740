"""Where a version comes from, in a file beside its weights: which data, which code, which configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.code_version import code_version
from fmad_dist.config import RunConfig
from fmad_dist.storage import Store

LINEAGE_NAME = "lineage.json"
# Of the lineage, also as tags: for lists and searches.
TAGS = ("train_step", "weights_sha256", "backbone", "backbone_digest", "code", "licence_note", "data")
MAX_TAG = 4900  # MLflow takes 5000 characters
_NOT_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "non commercial", "research only")


def write_lineage(detector: Path, config: RunConfig, run_id: str, run_tags: Mapping[str, str]) -> dict[str, Any]:
    """Write lineage.json into the detector's folder and return its content.

    `run_tags` are those of the MLflow run: they name the code that trained, which may be another than today's.
    """
    spec = json.loads((detector / "detector.json").read_text())
    lineage = {
        "run_id": run_id,
        "run": str(config.name),
        "code": run_tags.get("mlflow.source.git.commit") or "not known",
        "registered_by": code_version(),
        "data": spec["manifest_digests"],
        "manifests": list(config.data.manifests),
        "licences": spec["licences"],
        "licence_note": licence_note(spec["licences"]),
        "backbone": spec["features"]["backbone"],
        "backbone_digest": spec["backbone_digest"],
        "weights_sha256": spec["weights_sha256"],
        "train_step": spec["train_step"],
        "protocol": spec["protocol"],
        "class_names": spec["class_names"],
        "config": config.model_dump(mode="json"),
    }
    Store(detector).write(LINEAGE_NAME, (json.dumps(lineage, indent=1) + "\n").encode())
    return lineage


def lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    """What is shown in lists and found by searches. What is too long for a tag is in lineage.json only."""
    values = {name: lineage[name] for name in TAGS} | {"classes": len(lineage["class_names"])}
    tags = {f"fmad.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return {name: value for name, value in tags.items() if len(value) <= MAX_TAG}


def licence_note(licences: Mapping[str, str]) -> str:
    """What a user of the model must know about the licences of its training data."""
    restricted = [f"{name} ({text})" for name, text in sorted(licences.items()) if _restricted(text)]
    unknown = [name for name, text in sorted(licences.items()) if not text or text.lower() in ("unknown", "not given")]
    notes = []
    if restricted:
        notes.append(f"trained on data for non-commercial use only: {', '.join(restricted)}")
    if unknown:
        notes.append(f"licence of the training data not known: {', '.join(unknown)}")
    return "; ".join(notes) or "no restriction known"


def _restricted(licence: str) -> bool:
    return any(mark in licence.lower() for mark in _NOT_COMMERCIAL)
