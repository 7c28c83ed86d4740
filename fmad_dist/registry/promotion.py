"""The aliases `champion` and `previous`: moved by a gate, back by a rollback, each decision kept with its version."""

import json
import time
from dataclasses import asdict
from typing import Any

from fmad_dist.errors import UserError
from fmad_dist.registry.evidence import evaluation_of, read_evidence
from fmad_dist.registry.gate import Decision, Evidence, Gate, Parity, decide
from fmad_dist.registry.lock import promotion_lock
from fmad_dist.registry.versions import aliased, answered, registry_client, uri_of, version_of

CHAMPION, PREVIOUS = "champion", "previous"
DECISION_TAG, REPLACED_TAG, ROLLED_BACK_TAG = "fmad.decision", "fmad.replaced", "fmad.rolled_back"
MAX_FOUND = 250  # characters of a check that are kept in the tag, which has room for 5000


def promote(model: str, gate: Gate, break_lock: bool = False) -> Decision:
    """Make a version the champion if the gate accepts it. The decision is written to the version in either case.

    Raises:
        UserError: it is the champion already, another promotion is under way, or its test data cannot be read.
    """
    client = registry_client()
    version = version_of(client, model)
    with promotion_lock(client, version.name, break_lock):
        champion = aliased(client, version.name, CHAMPION)
        if champion is not None and champion.version == version.version:
            raise UserError(f"{model}: version {version.version} is the champion already.")
        decision = _decide(client, version, champion, gate)
        with answered(model):
            _keep(client, version, DECISION_TAG, _described(decision, champion, gate))
            if decision.accepted:
                _crown(client, version, champion)
    return decision


def rollback(name: str, break_lock: bool = False) -> tuple[str, str]:
    """Give the champion's place back to the version that it replaced; returns (version that left, version in place).

    Raises:
        UserError: there is no champion, or none before it.
    """
    client = registry_client()
    with promotion_lock(client, name, break_lock), answered(f"models:/{name}"):
        champion = aliased(client, name, CHAMPION)
        if champion is None:
            raise UserError(f"models:/{name}: has no champion; promote a version first.")
        replaced = champion.tags.get(REPLACED_TAG)
        if not replaced:
            raise UserError(f"models:/{name}: version {champion.version} replaced none, so there is no way back.")
        before = client.get_model_version(name, replaced)
        client.set_registered_model_alias(name, CHAMPION, before.version)
        if before.tags.get(REPLACED_TAG):
            client.set_registered_model_alias(name, PREVIOUS, before.tags[REPLACED_TAG])
        else:
            client.delete_registered_model_alias(name, PREVIOUS)
        _keep(client, champion, ROLLED_BACK_TAG, f"{_now()}, to version {before.version}")
    return str(champion.version), str(before.version)


def _decide(client: Any, version: Any, champion: Any, gate: Gate) -> Decision:
    from fmad_dist.detector_files import locate_detector, read_spec
    from fmad_dist.registry.parity import measure_parity

    spec = read_spec(locate_detector(uri_of(version)))
    evidence, scores = read_evidence(client, version, spec)
    rival: Evidence | None = None
    if champion is not None:
        rival, _ = read_evidence(client, champion)
    parity: Parity | None = None
    evaluated = evaluation_of(version)
    if evaluated is not None and evidence.results is not None:
        parity = measure_parity(version, spec, evaluated, scores, gate.parity_images)
    return decide(gate, evidence, rival, parity)


def _crown(client: Any, version: Any, champion: Any) -> None:
    """What is needed to go back comes first, so that a process that dies in between has lost nothing."""
    name = version.name
    now = aliased(client, name, CHAMPION)
    if (now and now.version) != (champion and champion.version):
        raise UserError(f"models:/{name}: the champion changed meanwhile, not by fmad; look at it and promote again.")
    if champion is not None:
        _keep(client, version, REPLACED_TAG, str(champion.version))
        client.set_registered_model_alias(name, PREVIOUS, champion.version)
    client.set_registered_model_alias(name, CHAMPION, version.version)


def _described(decision: Decision, champion: Any, gate: Gate) -> str:
    checks = [asdict(check) | {"found": check.found[:MAX_FOUND]} for check in decision.checks]
    against = None if champion is None else str(champion.version)
    body = {"time": _now(), "accepted": decision.accepted, "against": against, "gate": gate.model_dump(mode="json")}
    return json.dumps(body | {"checks": checks})


def _keep(client: Any, version: Any, tag: str, text: str) -> None:
    client.set_model_version_tag(version.name, version.version, tag, text)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
