"""Set the aliases `champion` and `previous` by a gate, or back by a rollback; the version keeps each decision.

A lock on the registered model, on any MLflow server: MLflow has no conditional writes, but of two clients that create a
registered model of the same name one is refused, by the database. An empty registered model of a reserved name is the
lock.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.registry.evidence import evaluation_of, measure_parity, read_evidence
from fmad_dist.registry.gate import Decision, Evidence, Gate, Parity, decide
from fmad_dist.storage.lease import Owner
from fmad_dist.tracking.database import failures
from fmad_dist.tracking.registered_files import FILES_TAG, download_model
from fmad_dist.tracking.server import aliased, answered, registry_client, uri_of, version_of

CHAMPION, PREVIOUS = "champion", "previous"
DECISION_TAG, REPLACED_TAG, ROLLED_BACK_TAG = "fmad.decision", "fmad.replaced", "fmad.rolled_back"
MAX_FOUND = 250  # characters of a check that are kept in the tag, which has room for 5000
SUFFIX = ".promotion-lock"


def promote(model: str, gate: Gate, break_lock: bool = False) -> Decision:
    """Make a version the champion if the gate accepts it; the decision is written to the version either way.

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
                _set_champion(client, version, champion)
    return decision


def rollback(name: str, break_lock: bool = False) -> tuple[str, str]:
    """Make the version that the champion replaced the champion again; returns both, the one that leaves first.

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
    from fmad_dist.detector.files import SPEC_NAME, read_spec

    if FILES_TAG not in version.tags:  # its code would run below, whoever wrote it
        raise UserError(
            f"{uri_of(version)}: the registry has no digests of its files, so nothing says that they are those that "
            "were registered; register its run again: fmad registry register --run RUN."
        )
    folder = download_model(uri_of(version))
    spec = read_spec(next(folder.rglob(SPEC_NAME)).parent)
    evidence, scores = read_evidence(client, version, spec)
    rival: Evidence | None = None
    if champion is not None:
        rival, _ = read_evidence(client, champion)
    parity: Parity | None = None
    evaluated = evaluation_of(version)
    if evaluated is not None and evidence.results is not None:
        parity = measure_parity(version, folder, spec, evaluated, scores, gate.parity_images)
    return decide(gate, evidence, rival, parity)


def _set_champion(client: Any, version: Any, champion: Any) -> None:
    """Write what a rollback needs first, so that a process that dies in between has lost nothing."""
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


@contextmanager
def promotion_lock(client: Any, name: str, break_lock: bool = False) -> Iterator[None]:
    """Hold the lock of a registered model; `break_lock` removes one that a dead process has left.

    Raises:
        UserError: another promotion holds it, or the registry cannot be reached.
    """
    lock = name + SUFFIX
    if break_lock:
        with suppress(*failures()):
            client.delete_registered_model(lock)
    try:
        client.create_registered_model(
            lock, tags={"fmad.owner": str(Owner.here())}, description="made by fmad while it promotes"
        )
    except failures() as error:
        if getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS":
            raise UserError(
                f"{name}: another promotion is under way ({_owner(client, lock)}); wait for it, or use --break-lock if "
                "that process is dead."
            ) from None
        with answered(name):
            raise
    try:
        yield
    finally:
        with suppress(*failures()):
            client.delete_registered_model(lock)


def _owner(client: Any, lock: str) -> str:
    try:
        return str(client.get_registered_model(lock).tags.get("fmad.owner", "owner not known"))
    except failures():  # it ended just now
        return "it has just ended"
