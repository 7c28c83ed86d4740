"""The tables and texts of `fmad registry list`, `show` and `compare`."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from fmad_dist.base.errors import UserError
from fmad_dist.metrics.results import METRIC_NAMES
from fmad_dist.registry.evidence import evaluation_of, read_evidence
from fmad_dist.registry.gate import Check, Decision
from fmad_dist.registry.promotion import DECISION_TAG, REPLACED_TAG, ROLLED_BACK_TAG, SUFFIX
from fmad_dist.registry.register import LINEAGE_NAME
from fmad_dist.tracking.registered_files import download_model
from fmad_dist.tracking.server import answered, registry_client, uri_of, version_of

SHOWN = ("image_auroc", "pixel_auroc", "aupro")


def list_versions(name: str | None) -> Table:
    """Return a table of all versions of a model, or of all models, the newest first.

    Raises:
        UserError: there is no such model, or the registry cannot be reached.
    """
    import mlflow

    client = registry_client()
    table = Table("model", "aliases", "made", "step", *SHOWN, "protocol", "gate", "run")
    with answered(f"models:/{name}" if name else "registry list"):
        names = [name] if name else [model.name for model in mlflow.search_registered_models()]
        for one in names:
            if one.endswith(SUFFIX):
                continue
            of_version = _aliases(client.get_registered_model(one).aliases)
            versions = mlflow.search_model_versions(filter_string=f"name='{one}'")
            for version in sorted(versions, key=lambda version: -int(version.version)):
                table.add_row(*_row(version, of_version.get(str(version.version), [])))
    if not table.row_count:
        raise UserError("the registry has no versions; `fmad registry register --run DIR` makes one.")
    return table


def _aliases(by_alias: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, version in sorted(by_alias.items()):
        found.setdefault(str(version), []).append(alias)
    return found


def _row(version: Any, aliases: list[str]) -> list[str]:
    tags = version.tags
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.creation_timestamp / 1000))
    values = [tags[f"fmad.test_{name}"][:6] if f"fmad.test_{name}" in tags else "-" for name in SHOWN]
    decision = json.loads(tags[DECISION_TAG]) if DECISION_TAG in tags else None
    gate = "-" if decision is None else "accepted" if decision["accepted"] else "refused"
    gate = "rolled back" if ROLLED_BACK_TAG in tags else gate
    step, protocol = tags.get("fmad.train_step", "-"), tags.get("fmad.protocol", "-")
    return [uri_of(version), " ".join(aliases), made, step, *values, protocol, gate, version.run_id[:8]]


def show_version(model: str) -> Iterator[str]:
    """Yield lines from the registry alone: data, code, configuration, metrics and the gate's decision.

    Raises:
        UserError: the registry has no such version, or cannot be reached.
    """
    client = registry_client()
    version = version_of(client, model)
    with answered(model):
        aliases = _aliases(client.get_registered_model(version.name).aliases).get(str(version.version), [])
    yield f"{uri_of(version)}" + (f"  ({', '.join(aliases)})" if aliases else "")
    found = sorted(download_model(uri_of(version)).rglob(LINEAGE_NAME))
    if found:
        yield from _lineage_lines(json.loads(found[0].read_text()))
    evaluated = evaluation_of(version)
    if evaluated is None:
        yield f"evaluation     none; run `fmad evaluate --model {uri_of(version)} --data URL --out DIR`"
    else:
        yield f"evaluation     {version.tags.get('fmad.protocol', '')}, files in {evaluated.artifacts} of the run"
        for name, digest in evaluated.tested_on.items():
            yield f"  tested on    {name}, manifest {digest}"
        yield from _metric_lines(read_evidence(client, version)[0].results)
    yield from _decision_lines(version.tags)


def _lineage_lines(lineage: dict[str, Any]) -> Iterator[str]:
    yield f"run            {lineage['run']}, MLflow run {lineage['run_id']}, {lineage['train_step']} steps"
    yield f"code           commit {lineage['code']}; registered by {lineage['registered_by']}"
    for name, digest in lineage["data"].items():
        yield f"data           {name}, manifest {digest}, licence {lineage['licences'].get(name, 'not known')}"
    for url in lineage["manifests"]:
        yield f"  from         {url}"
    for name, digest in (lineage.get("calibrated_on") or {}).items():
        yield f"thresholds     calibrated again on {name}, digest {digest}"
    yield f"licence note   {lineage['licence_note']}"
    yield f"backbone       {lineage['backbone']}, weights {lineage['backbone_digest']}"
    yield f"weights        sha256 {lineage['weights_sha256']}"
    yield f"classes        {len(lineage['class_names'])}: {', '.join(lineage['class_names'])}"
    yield "config         " + json.dumps(lineage["config"], indent=1).replace("\n", "\n               ")


def _metric_lines(results: Mapping[str, Any] | None) -> Iterator[str]:
    if results is None:
        return
    mean = results["mean"]
    for name in METRIC_NAMES:
        if mean[name] is not None:
            yield f"  {name:<12} {mean[name]:.4f}{_interval(mean, name)}"


def _interval(values: dict[str, Any], name: str) -> str:
    low_high = values["intervals"].get(name)
    return f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""


def _decision_lines(tags: dict[str, str]) -> Iterator[str]:
    if DECISION_TAG in tags:
        decision = json.loads(tags[DECISION_TAG])
        word = "accepted" if decision["accepted"] else "refused"
        against = f", against version {decision['against']}" if decision["against"] else ""
        yield f"gate           {word} on {decision['time']}{against}"
        yield from (f"  {line}" for line in Decision(tuple(Check(**check) for check in decision["checks"])).lines())
    if REPLACED_TAG in tags:
        yield f"replaced       version {tags[REPLACED_TAG]}"
    if ROLLED_BACK_TAG in tags:
        yield f"rolled back    {tags[ROLLED_BACK_TAG]}"


def compare_versions(one: str, other: str, metric: str) -> Iterator[Table | str]:
    """Yield the means of two versions with their intervals, then a metric of every class, the largest loss first.

    Raises:
        UserError: a version was never evaluated, or the two evaluations cannot be compared.
    """
    if metric not in METRIC_NAMES:
        raise UserError(f"--metric: {metric!r} is none; choose one of {', '.join(METRIC_NAMES)}.")
    client = registry_client()
    versions = [version_of(client, model) for model in (one, other)]
    (a, _), (b, _) = (read_evidence(client, version) for version in versions)
    for version, evidence in zip(versions, (a, b), strict=True):
        if evidence.results is None:
            reason = evidence.problem or "was never evaluated"
            raise UserError(f"{uri_of(version)}: {reason}; `fmad evaluate --model {uri_of(version)}` does it.")
    assert a.results is not None
    assert b.results is not None
    names = [uri_of(version) for version in versions]
    if a.results["protocol"] != b.results["protocol"] or a.tested_on != b.tested_on:
        yield "These numbers cannot be compared: the protocol or the test data differ."
    yield _means(names, a.results, b.results)
    yield _classes(names, a.results, b.results, metric)


def _means(names: list[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    table = Table("mean over classes", *names, "difference")
    for metric in METRIC_NAMES:
        cells = [f"{_number(one['mean'][metric])}{_interval(one['mean'], metric)}" for one in (a, b)]
        table.add_row(metric, *cells, _difference(a["mean"][metric], b["mean"][metric]))
    return table


def _classes(names: list[str], a: Mapping[str, Any], b: Mapping[str, Any], metric: str) -> Table:
    table = Table(f"{metric} of class", *names, "difference")
    rows: list[tuple[float, str, float | None, float | None]] = []
    for key in {*a["classes"], *b["classes"]}:
        old, new = (one["classes"].get(key, {}).get(metric) for one in (a, b))
        rows.append((0.0 if old is None or new is None else new - old, key, old, new))
    for _, key, old, new in sorted(rows, key=lambda row: row[:2]):
        table.add_row(key, _number(old), _number(new), _difference(old, new))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _difference(old: float | None, new: float | None) -> str:
    return "-" if old is None or new is None else f"{new - old:+.4f}"
