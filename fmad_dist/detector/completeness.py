"""Whether a run directory holds the detector that its configuration asks for.

That a detector is there says little: it may be of a start with fewer steps, or with another scorer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.files import SPEC_NAME, check_intact, read_spec


def what_lacks(run: Path, config: RunConfig, known: Mapping[str, Any] | None = None) -> str | None:
    """What keeps a run directory from being complete, as a clause; None if its detector is whole and is the one that
    the configuration asks for.

    `known` are more fields of the wanted `DetectorSpec`: digests of data and backbone, where the caller has them.
    """
    folder = run / "detector"
    if not (folder / SPEC_NAME).is_file():
        return "there is no detector yet"
    try:
        spec = read_spec(folder)
        check_intact(folder, spec)
    except UserError as error:
        return f"the detector is damaged ({error})"
    wanted: dict[str, Any] = {
        "features": config.features.model_copy(update={"cache": None}),
        "objective": config.objective,
        "scorer": config.scorer,
        "precision": config.calibration.precision,
        "protocol": config.protocol,
        **(known or {}),
    }
    if spec.train_step != config.train.steps:
        return f"the detector is of step {spec.train_step} instead of {config.train.steps}"
    others = [name for name, value in wanted.items() if getattr(spec, name) != value]
    if spec.calibration is None or spec.calibration.false_alarm_rate != config.calibration.false_alarm_rate:
        others.append("false-alarm rate")
    return f"the detector is of other {', '.join(others)}" if others else None
