"""What a comparison runs: scorers, as `all` or a list like `own,inversion:steps=10,mismatch:noises=4:times=4`, and
methods of others beside them, as a list like `bank,bank_pooled:share=0.01,cflow:steps=2000`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.config.files import parse_config
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerConfig, default_config, scorer_names
from fmad_dist.scoring.interface import ScoringMethod, method_of
from fmad_dist.stream.mixture import Mixture

PEER_MARK = "(peer)"


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
        every = every_scorer()
        reasons = {config.title: config.refusal(objective) for config in every}
        fitting: dict[str, ScorerConfig] = {config.title: config for config in every if not reasons[config.title]}
        return Choice(fitting, {name: reason for name, reason in reasons.items() if reason})
    found = [own if own and part.strip() == OWN else _parse(part) for part in _split(",", text) if part]
    if not found:
        raise UserError(f"--scorers: name at least one of {', '.join(scorer_names())}, or all.")
    for config in found:
        reason = method_of(config).refusal(objective)
        if reason:
            raise UserError(f"--scorers: {config.name} does not fit this model: {reason}.")
    return Choice({config.title: config for config in found}, {})


def every_scorer() -> list[ScoringMethod]:
    """All that are installed, with the options that `all` takes."""
    return [config for name in scorer_names() for config in method_of(default_config(name)).compared()]


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


class PeerSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str

    @property
    def title(self) -> str:
        """The peer's name and the options that differ from its defaults."""
        options = self.model_dump(exclude_defaults=True, exclude={"name"})
        return " ".join([self.name, PEER_MARK, *(f"{key}={value}" for key, value in options.items())])


class CFlowConfig(PeerSection):
    name: Literal["cflow"] = "cflow"
    steps: int | None = Field(None, ge=1, description="batches it trains with; null = as many as the detector")


class BankConfig(PeerSection):
    name: Literal["bank", "bank_pooled"] = "bank"  # one bank per class, or one for all
    share: float = Field(0.1, gt=0.0, le=1.0, description="part of the drawn patches that a bank keeps")
    draw: int = Field(250_000, ge=1, description="patches that are drawn at most for a bank, evenly over its images")
    neighbours: int = Field(1, ge=1, description="nearest kept patches whose distances are averaged")
    side: Literal[1, 3, 5] = Field(3, description="a patch is the mean over side x side locations")
    taps: tuple[int, ...] = Field((), description="stages of the backbone that it looks at; empty = all")


PeerConfig = CFlowConfig | BankConfig
PEERS: dict[str, type[CFlowConfig] | type[BankConfig]] = {
    "bank": BankConfig,
    "bank_pooled": BankConfig,
    "cflow": CFlowConfig,
}


def choose_peers(text: str) -> tuple[PeerConfig, ...]:
    """From a list of names with options; empty text for none.

    Raises:
        UserError: a peer is unknown, has a wrong option, or its package is not installed.
    """
    return tuple(_peer(*named_options(part, "--peers")) for part in parts_of(text))


def check_peers(peers: Sequence[PeerConfig], mixture: Mixture, taps: Sequence[int]) -> None:
    """Whether the peers can be built on the data and on features of these stages of the backbone.

    Raises:
        UserError: a bank would look at other stages, or has to be of a class without training images.
    """
    test = mixture.rows("test")
    untrained = test[mixture.class_numbers[test] < 0]
    for peer in peers:
        if isinstance(peer, BankConfig) and set(peer.taps) - set(taps):
            raise UserError(f"--peers: {peer.name}: taps {list(peer.taps)}: this model's features have {list(taps)}.")
        if isinstance(peer, BankConfig) and peer.name == "bank" and len(untrained):
            sample_id = mixture.sample_id(int(untrained[0]))
            raise UserError(f"--peers: bank needs training images of the class of {sample_id}; use bank_pooled.")


def _peer(name: str, values: dict[str, Any]) -> PeerConfig:
    if name not in PEERS:
        raise UserError(f"--peers: {name!r} is not known; there is {', '.join(PEERS)}.")
    kind = PEERS[name]
    unknown = sorted(values.keys() - (kind.model_fields.keys() - {"name"}))
    if unknown:
        options = ", ".join(key for key in kind.model_fields if key != "name")
        raise UserError(f"--peers: {name} has no option {unknown[0]!r}; it takes {options}.")
    try:
        config = kind(**{"name": name, **values})
    except ValidationError as error:
        raise UserError(f"--peers: {name}: {first_line(error)}.") from None
    if isinstance(config, CFlowConfig) and find_spec("anomalib") is None:
        raise UserError("--peers: cflow comes from anomalib, which is missing; install fmad-dist[peers].")
    return config
