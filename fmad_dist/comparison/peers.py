"""Methods of others in the same comparison: a list like `bank,bank_pooled:share=0.01,cflow:steps=2000`."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmad_dist.comparison.choice import changed, named_options, parts_of
from fmad_dist.errors import UserError, first_line
from fmad_dist.stream.mixture import Mixture

PEER_MARK = "(peer)"


class PeerSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str

    @property
    def title(self) -> str:
        """The peer's name and the options that differ from its defaults."""
        options = changed(self, type(self)(name=self.name))
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
    strange = test[mixture.class_numbers[test] < 0]
    for peer in peers:
        if isinstance(peer, BankConfig) and set(peer.taps) - set(taps):
            raise UserError(f"--peers: {peer.name}: taps {list(peer.taps)}: this model's features have {list(taps)}.")
        if isinstance(peer, BankConfig) and peer.name == "bank" and len(strange):
            sample_id = mixture.sample_id(int(strange[0]))
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
