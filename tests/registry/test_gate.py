"""The gate as a pure function: every reason to refuse, alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.results import METRIC_NAMES
from fmad_dist.registry.gate import Decision, Evidence, Gate, Parity, decide, load_gate

CLASSES = ("toy/bolt", "toy/nut")
SAME = Parity(16, 0.0)


def results(values: dict[str, float | None], protocol: str = "fmad-2026", **of_class: float | None) -> dict[str, Any]:
    """results.json with the same `values` everywhere, `of_class` changes image_auroc of single classes."""
    base: dict[str, Any] = dict.fromkeys(METRIC_NAMES, 0.95) | values
    classes = {name: base | {"image_auroc": of_class.get(name[4:], base["image_auroc"])} for name in CLASSES}
    settings = Protocol(name=protocol)
    return {
        "protocol": settings.model_dump(mode="json"),
        "protocol_title": settings.title,
        "classes": classes,
        "mean": base,
    }


def evidence(version: str = "2", data: str = "d1", protocol: str = "fmad-2026", **values: float | None) -> Evidence:
    of_class = {name: values.pop(name) for name in ("bolt", "nut") if name in values}
    return Evidence(version, results(dict(values), protocol, **of_class), {"toy": data}, CLASSES)


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_good_version_is_accepted_with_and_without_a_champion() -> None:
    assert decide(Gate(), evidence(), None, SAME).accepted
    decision = decide(Gate(), evidence(image_auroc=0.96), evidence("1"), SAME)
    assert decision.accepted
    assert decision.reasons == []
    assert "0.9600 after 0.9500" in "\n".join(decision.lines())


def broken(version: Evidence) -> Evidence:
    assert version.results is not None
    classes = {"toy/bolt": version.results["classes"]["toy/bolt"]}
    return replace(version, results=version.results | {"classes": classes})


@pytest.mark.parametrize(
    ("make", "check", "says"),
    [
        (lambda: Evidence("2", None, class_names=CLASSES), "evaluation", "fmad evaluate"),
        (lambda: replace(evidence(), results=None, problem="scores.csv was changed"), "evaluation", "scores.csv"),
        (lambda: evidence(protocol="ader"), "evaluation", "biased"),
        (lambda: replace(evidence(), uncalibrated=("toy/nut",)), "decision thresholds", "toy/nut"),
        (lambda: broken(evidence()), "all classes tested", "toy/nut"),
        (lambda: evidence(nut=None), "all metrics defined", "image_auroc of toy/nut"),
        (lambda: evidence(aupro=0.79), "aupro >= 0.8", "0.7900"),
        (lambda: evidence(nut=0.4), "image_auroc of every class >= 0.5", "toy/nut 0.4000"),
    ],
)
def test_every_reason_is_found_without_a_champion(make: Callable[[], Evidence], check: str, says: str) -> None:
    decision = decide(Gate(class_thresholds={"image_auroc": 0.5}), make(), None, SAME)
    assert not decision.accepted
    assert check in failed(decision)
    assert says in "\n".join(decision.reasons)


@pytest.mark.parametrize(
    ("candidate", "champion", "check", "says"),
    [
        (evidence(image_auroc=0.94), evidence("1"), "image_auroc against version 1", "0.9400 after 0.9500"),
        (evidence(nut=0.92), evidence("1"), "image_auroc of no class worse by more than 0.02", "toy/nut 0.9200 after"),
        (evidence(data="d2"), evidence("1"), "comparable with version 1", "toy changed since"),
        (evidence(), Evidence("1", None), "comparable with version 1", "never evaluated"),
        (evidence(), evidence("1", protocol="ader"), "comparable with version 1", "protocols"),
        (
            evidence(),
            replace(evidence("1"), tested_on={"toy": "d1", "more": "d2"}),
            "comparable with version 1",
            "tested on more too",
        ),
    ],
)
def test_every_reason_is_found_against_a_champion(
    candidate: Evidence, champion: Evidence, check: str, says: str
) -> None:
    decision = decide(Gate(), candidate, champion, SAME)
    assert failed(decision) == [check]
    assert says in decision.reasons[0]


@pytest.mark.parametrize("parity", [None, Parity(16, 2e-4), Parity(16, 0.0, flipped=1)])
def test_files_that_score_otherwise_are_refused(parity: Parity | None) -> None:
    decision = decide(Gate(), evidence(), None, parity)
    assert failed(decision) == ["registered files score as evaluated, to 0.0001"]


@given(
    st.lists(st.floats(0.5, 1.0), min_size=4, max_size=4),
    st.floats(0.0, 0.1),
)
def test_nothing_accepted_is_worse_than_the_gate_says(values: list[float], most: float) -> None:
    gate = Gate(thresholds={}, mean_drop={"image_auroc": most}, class_drop={"image_auroc": most})
    mean = [sum(values[:2]) / 2, sum(values[2:]) / 2]
    new = evidence(image_auroc=mean[0], bolt=values[0], nut=values[1])
    old = evidence("1", image_auroc=mean[1], bolt=values[2], nut=values[3])
    worst = max(values[2] - values[0], values[3] - values[1])
    accepted = decide(gate, new, old, SAME).accepted
    assert accepted == (worst <= most and mean[0] >= mean[1] - most)


def test_the_file_in_configs_is_the_default(tmp_path: Path) -> None:
    assert load_gate(Path(__file__).parents[2] / "configs" / "registry" / "gate.yaml") == load_gate(None)
    wrong = tmp_path / "gate.yaml"
    wrong.write_text("thresholds: {image_aurok: 0.9}")
    with pytest.raises(UserError, match="image_aurok is no metric"):
        load_gate(wrong)
    wrong.write_text("treshold: {image_auroc: 0.9}")
    with pytest.raises(UserError, match="did you mean 'thresholds'"):
        load_gate(wrong)
