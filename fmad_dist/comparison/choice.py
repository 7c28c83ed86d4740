"""Which scorers a comparison runs: `all`, or a list like `own,inversion:steps=10,mismatch:noises=4:times=4`."""

import re
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from fmad_dist.config import ObjectiveConfig
from fmad_dist.config_files import parse_config
from fmad_dist.errors import UserError, first_line
from fmad_dist.scoring.build import refusal
from fmad_dist.scoring.config import (
    SCORER_CONFIGS,
    DDIMConfig,
    DensityConfig,
    DeviationConfig,
    EndpointConfig,
    FusionConfig,
    InversionConfig,
    MismatchConfig,
    ReconstructionConfig,
    ResidualConfig,
    ScorerConfig,
)

EVERY: tuple[ScorerConfig, ...] = (
    InversionConfig(),
    ReconstructionConfig(),
    DensityConfig(),
    MismatchConfig(),
    EndpointConfig(),
    EndpointConfig(postprocess="paper"),
    ResidualConfig(),
    DDIMConfig(),
    FusionConfig(),
    DeviationConfig(),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The scorers that run, by title, and why others of `all` do not."""

    scorers: dict[str, ScorerConfig]
    left_out: dict[str, str]


OWN = "own"


def choose(text: str, objective: ObjectiveConfig, own: ScorerConfig | None = None) -> Choice:
    """The scorers for a model of this objective, whose `own` scorer may be called by that name.

    Raises:
        UserError: a scorer is unknown, has a wrong option, or is named although it does not fit the objective.
    """
    if text == "all":
        reasons = {title(config): refusal(config, objective) for config in EVERY}
        fitting = {title(config): config for config in EVERY if not reasons[title(config)]}
        return Choice(fitting, {name: reason for name, reason in reasons.items() if reason})
    found = [own if own and part.strip() == OWN else _parse(part) for part in _split(",", text) if part]
    if not found:
        raise UserError(f"--scorers: name at least one of {', '.join(SCORER_CONFIGS)}, or all.")
    for config in found:
        reason = refusal(config, objective)
        if reason:
            raise UserError(f"--scorers: {config.name} does not fit this model: {reason}.")
    return Choice({title(config): config for config in found}, {})


def title(config: ScorerConfig) -> str:
    """The scorer's name and the options that differ from its defaults."""
    values = changed(config, SCORER_CONFIGS[config.name]())
    if isinstance(config, FusionConfig) and values:
        values["parts"] = f"[{' + '.join(title(part) for part in config.parts)}]"
    if isinstance(config, DeviationConfig) and "part" in values:
        values["part"] = f"[{title(config.part)}]"
    return " ".join([config.name, *(f"{key}={value}" for key, value in values.items())])


def changed(config: BaseModel, default: BaseModel) -> dict[str, Any]:
    """The fields whose values differ."""
    return {key: value for key, value in config if value != getattr(default, key)}


def named_options(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """The name and the values, as YAML, of `name:key=value:key=value`; `option` is named in errors.

    Raises:
        UserError: it is written in another way.
    """
    name, *pairs = _split(":", text.strip())
    values = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"{option}: {pair!r} in {text!r}: write options as name:key=value:key=value.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{option}: {pair!r}: the value is not valid YAML ({first_line(error)}).") from None
    return name, values


def parts_of(text: str) -> list[str]:
    """The parts of a list with commas that are not blank."""
    return [part for part in _split(",", text) if part.strip()]


def _split(separator: str, text: str) -> list[str]:
    """Separators inside [...] belong to a value."""
    return re.split(separator + r"(?![^\[]*\])", text)


def _parse(text: str) -> ScorerConfig:
    name, values = named_options(text, "--scorers")
    return parse_config({"scorer": {"name": name, **values}}, source="--scorers").scorer
