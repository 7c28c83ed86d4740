"""Decide whether a version may replace the champion: a pure function of what was measured, with every reason [ours].

A gate is an acceptance test on the data it is given: it says whether one candidate is fit for use. Which candidate
that is must be decided before, on held-out normals and synthetic defects (`fmad follow`): the best of many candidates
on test images would have results that are too good.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmad_dist.config.files import read_tree, validated
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.results import METRIC_NAMES

Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class Gate(BaseModel):
    """What a version must show. Metrics are those of results.json, in [0, 1], means over classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: dict[str, Rate] = Field(
        {"image_auroc": 0.9, "aupro": 0.8}, description="least mean over all classes, by metric"
    )
    class_thresholds: dict[str, Rate] = Field({}, description="least value of every single class, by metric")
    mean_drop: dict[str, Rate] = Field(
        {"image_auroc": 0.0, "aupro": 0.0}, description="most that a mean may be below the champion's, by metric"
    )
    class_drop: dict[str, Rate] = Field(
        {"image_auroc": 0.02}, description="most that a class may be below the champion's, by metric"
    )
    parity_images: int = Field(16, ge=1, description="test images that the registered files must score again")
    parity_tolerance: float = Field(
        1e-4, gt=0.0, lt=1.0, description="most relative difference of such a score from that of the evaluation"
    )

    @model_validator(mode="after")
    def _check(self) -> "Gate":
        for part in ("thresholds", "class_thresholds", "mean_drop", "class_drop"):
            for name in getattr(self, part):
                if name not in METRIC_NAMES:
                    raise ValueError(f"{part}.{name} is no metric; choose one of {', '.join(METRIC_NAMES)}")
        return self

    @property
    def metrics(self) -> list[str]:
        """All metrics that the gate looks at, in the usual order."""
        named = {*self.thresholds, *self.class_thresholds, *self.mean_drop, *self.class_drop}
        return [name for name in METRIC_NAMES if name in named]


def load_gate(path: Path | None) -> Gate:
    """Read the gate from a YAML file; without one return the default.

    Raises:
        UserError: the file cannot be read, or a key or value is wrong.
    """
    return Gate() if path is None else validated(Gate, read_tree(path), str(path))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate is told about a version."""

    version: str
    results: Mapping[str, Any] | None  # the content of results.json, None if the version was never evaluated
    tested_on: Mapping[str, str] = field(default_factory=dict)  # dataset -> digest of the manifest it was tested on
    class_names: tuple[str, ...] = ()  # the classes it was trained for
    uncalibrated: tuple[str, ...] = ()  # those without a decision threshold
    problem: str = ""  # why its files or results cannot be trusted


@dataclass(frozen=True, slots=True)
class Parity:
    """How the registered files score images of the evaluation, beside what the evaluation says."""

    num_images: int
    difference: float  # largest relative difference of a score
    flipped: int = 0  # decisions that differ


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate, whether it holds, and the value that was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Decision:
    """All checks of a version, which is accepted if every one passes."""

    checks: tuple[Check, ...]

    @property
    def accepted(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """The checks that do not pass; empty if it is accepted."""
        return [f"{check.name}: {check.found}" for check in self.checks if not check.passed]

    def lines(self) -> list[str]:
        """One line per check."""
        return [f"{'ok     ' if check.passed else 'refused'}  {check.name}: {check.found}" for check in self.checks]


def decide(gate: Gate, candidate: Evidence, champion: Evidence | None, parity: Parity | None) -> Decision:
    """Check the candidate against the gate and the champion; None stands for no champion yet and for a parity that
    cannot be measured."""
    checks = [_evaluated(candidate), *_calibrated(candidate)]
    if candidate.results is not None:
        checks += _complete(gate, candidate)
        checks += _thresholds(gate, candidate.results)
        checks += _against(gate, candidate, champion)
        checks.append(_parity(gate, parity))
    return Decision(tuple(checks))


def _evaluated(candidate: Evidence) -> Check:
    if candidate.problem:
        return Check("evaluation", False, candidate.problem)
    if candidate.results is None:
        return Check("evaluation", False, "none; run `fmad evaluate --model models:/NAME/VERSION` first")
    if Protocol.model_validate(candidate.results["protocol"]).biased:
        return Check("evaluation", False, f"by the protocol {candidate.results['protocol_title']}, which is biased")
    return Check("evaluation", True, candidate.results["protocol_title"])


def _calibrated(candidate: Evidence) -> Iterator[Check]:
    missing = candidate.uncalibrated
    found = f"none for {', '.join(missing)}" if missing else f"{len(candidate.class_names)} classes"
    yield Check("decision thresholds", not missing, found)


def _complete(gate: Gate, candidate: Evidence) -> Iterator[Check]:
    assert candidate.results is not None
    classes = candidate.results["classes"]
    missing = sorted(set(candidate.class_names) - classes.keys())
    yield Check(
        "all classes tested", not missing, f"without {', '.join(missing)}" if missing else f"{len(classes)} classes"
    )
    undefined = [f"{name} of {key}" for key, values in classes.items() for name in gate.metrics if values[name] is None]
    yield Check("all metrics defined", not undefined, ", ".join(undefined) or ", ".join(gate.metrics))


def _thresholds(gate: Gate, results: Mapping[str, Any]) -> Iterator[Check]:
    for name, least in gate.thresholds.items():
        value = results["mean"][name]
        yield Check(f"{name} >= {least:g}", value is not None and value >= least, _shown(value))
    for name, least in gate.class_thresholds.items():
        low = {key: one[name] for key, one in results["classes"].items() if one[name] is None or one[name] < least}
        found = ", ".join(f"{key} {_shown(value)}" for key, value in low.items())
        yield Check(f"{name} of every class >= {least:g}", not low, found or f"{len(results['classes'])} classes")


def _against(gate: Gate, candidate: Evidence, champion: Evidence | None) -> Iterator[Check]:
    if champion is None:
        return
    name = f"comparable with version {champion.version}"
    problem = _why_not_comparable(candidate, champion)
    yield Check(name, not problem, problem or "same protocol, same test data")
    if problem or candidate.results is None or champion.results is None:
        return
    new, old = candidate.results, champion.results
    for metric, most in gate.mean_drop.items():
        a, b = new["mean"][metric], old["mean"][metric]
        passed = a is not None and (b is None or a >= b - most)
        yield Check(f"{metric} against version {champion.version}", passed, f"{_shown(a)} after {_shown(b)}")
    for metric, most in gate.class_drop.items():
        worse = [
            f"{key} {_shown(new['classes'][key][metric])} after {_shown(values[metric])}"
            for key, values in old["classes"].items()
            if key in new["classes"] and _drop(values[metric], new["classes"][key][metric]) > most
        ]
        found = "; ".join(worse) or "no class"
        yield Check(f"{metric} of no class worse by more than {most:g}", not worse, found)


def _why_not_comparable(candidate: Evidence, champion: Evidence) -> str:
    if champion.results is None:
        return f"version {champion.version} was never evaluated; evaluate it on the same data"
    assert candidate.results is not None
    if candidate.results["protocol"] != champion.results["protocol"]:
        return (
            f"protocols {candidate.results['protocol_title']} and {champion.results['protocol_title']} differ; "
            "evaluate both by one"
        )
    lost = sorted(champion.tested_on.keys() - candidate.tested_on.keys())
    if lost:
        return f"version {champion.version} was tested on {', '.join(lost)} too; test the new one on the same"
    changed = [name for name, digest in champion.tested_on.items() if candidate.tested_on[name] != digest]
    if changed:
        return f"{', '.join(changed)} changed since; evaluate version {champion.version} again on the new data"
    return ""


def _parity(gate: Gate, parity: Parity | None) -> Check:
    name = f"registered files score as evaluated, to {gate.parity_tolerance:g}"
    if parity is None:
        return Check(name, False, "not measured")
    found = f"{parity.difference:.1e} at most, {parity.flipped} decisions differ, on {parity.num_images} images"
    return Check(name, parity.difference <= gate.parity_tolerance and parity.flipped == 0, found)


def _drop(before: float | None, after: float | None) -> float:
    if before is None:
        return 0.0
    return 1.0 if after is None else before - after


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
