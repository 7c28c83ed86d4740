"""What the weights of a training depend on, as one digest: equal digests, equal weights up to rounding."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fmad_dist.config.run import RunConfig

# Where a run lies, how it is read, dealt, watched and kept, and what is made of its weights afterwards.
_LEFT_OUT = {
    "": ("name", "output", "tracking", "scorer", "calibration", "protocol"),
    "data": ("manifests", "workers", "cache", "cache_gb", "patience_s", "max_bad_samples", "endpoint_url"),
    "features": ("cache",),
    "model": ("checkpointing",),
    "train": (
        *("zero_stage", "compile", "log_every", "log_samples", "hang_s", "max_skipped", "max_rollbacks"),
        *("checkpoint_every", "checkpoint_url", "keep_checkpoints", "keep_every"),
    ),
}


def training_fingerprint(config: RunConfig, manifests: Mapping[str, str]) -> str:
    """Return a SHA-256 of the settings that differ from their defaults and of the manifests' digests by dataset name.

    A setting that a later version adds does not change it as long as it has its default.
    """
    tree: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    for section, keys in _LEFT_OUT.items():
        inner = tree.get(section, {}) if section else tree
        for key in keys:
            inner.pop(key, None)
    facts = {"settings": {key: value for key, value in tree.items() if value != {}}, "manifests": dict(manifests)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
