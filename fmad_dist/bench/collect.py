"""One report over all evaluations that are there: their states are joined, and nothing is scored again."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fmad_dist.base.errors import UserError
from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.models import BenchModel
from fmad_dist.bench.stages import Compare, Evaluate, stages_of, survey
from fmad_dist.comparison.choice import PEER_MARK
from fmad_dist.comparison.table import COMPARISON_NAME, PEER_NOTES
from fmad_dist.evaluation.report import STATE_NAME
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import Results
from fmad_dist.metrics.state import EvaluationState, dataset_of
from fmad_dist.metrics.wire import decode_state
from fmad_dist.report.benchmark import ComparedRow, compared_rows, measured_note, published_rows
from fmad_dist.report.html import REPORT_NAME, write_report
from fmad_dist.report.result_files import RESULTS_NAME, results_json
from fmad_dist.report.tables import write_tables
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp

BENCH_NAME = "bench.json"
Compared = dict[str, list[ComparedRow]]  # by dataset


@dataclass
class Found:
    """What is complete, by model, and the stages that are not."""

    evaluations: dict[str, Evaluate] = field(default_factory=dict)
    comparisons: dict[str, Compare] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def look(config: BenchConfig, models: Sequence[BenchModel]) -> Found:
    """Read from the files what there is."""
    found = Found()
    for model in models:
        stages = stages_of(model, config)
        for stage, status in zip(stages, survey(stages), strict=True):
            if status.state != "done":
                found.missing.append(stage.name)
            elif isinstance(stage, Evaluate):
                found.evaluations[model.name] = stage
            elif isinstance(stage, Compare):
                found.comparisons[model.name] = stage
    return found


def collect(config: BenchConfig, found: Found) -> None:
    """Write report.html, results.md, results.tex and bench.json, which comes last, into the bench's folder.

    Raises:
        UserError: nothing is evaluated yet, or an evaluation's results are not those of its state.
    """
    if not found.evaluations:
        raise UserError(f"{config.out}: nothing is evaluated yet; missing: {', '.join(found.missing)}.")
    state = EvaluationState(next(iter(found.evaluations.values())).spec.protocol)
    for stage in found.evaluations.values():
        state.merge(decode_state(Store(stage.out).read(STATE_NAME)))
    results = compute_results(state)
    for stage in found.evaluations.values():
        _check(stage, results)
    rows = _compared(found.comparisons.values())
    out = Path(config.out)
    write_report(results, state, out / REPORT_NAME, title=config.title, facts=_facts(found), peers=rows)
    write_tables(results, out, rows)
    compared = {
        dataset: [asdict(row) for row in (*own, *published_rows(dataset))]
        for dataset, own in compared_rows(results, rows).items()
    }
    body = {"mode": config.mode, "missing": found.missing, "models": _models(found), "compared": compared}
    text = json.dumps(body | results_json(results), indent=2, allow_nan=False) + "\n"
    Store(out).write(BENCH_NAME, text.encode())
    print(f"report: {out / REPORT_NAME}, tables: {out / 'results.md'}", flush=True)


def _check(stage: Evaluate, results: Results) -> None:
    """The joined state gives the numbers that the evaluation wrote."""
    theirs = json.loads(Store(stage.out).read(RESULTS_NAME))["classes"]
    ours = json.loads(json.dumps(results_json(results)["classes"]))
    for name, values in theirs.items():
        if ours.get(name) != values:
            raise UserError(
                f"{stage.out / RESULTS_NAME}: its {name} is not what its {STATE_NAME} says, so it was made by another "
                "version of fmad; remove the folder and start again."
            )


def _compared(stages: Iterable[Compare]) -> Compared:
    """The peers and other scorers of all comparisons, as means over the classes of each dataset."""
    found: Compared = {}
    for stage in stages:
        scorers = json.loads(Store(stage.out).read(COMPARISON_NAME))["scorers"]
        scorers.pop(stage.spec.scorer.title, None)  # the evaluation says it already
        for title, values in scorers.items():
            counts = Counter(map(dataset_of, values["classes"]))
            for dataset, mean in values["datasets"].items():
                note = measured_note(dataset, counts[dataset], stage.spec.protocol.title)
                found.setdefault(dataset, []).append(_row(title, mean, note))
    return found


def _row(title: str, mean: Mapping[str, float | None], note: str) -> ComparedRow:
    metrics = {metric: value for metric, value in mean.items() if value is not None}
    if PEER_MARK in title:
        name = " ".join(title.replace(PEER_MARK, "").split())
        return ComparedRow(name, "peer", f"{note}; {PEER_NOTES[name.split()[0]].removesuffix('.')}", metrics)
    return ComparedRow(f"fmad {title}", "ours", note, metrics)


def _facts(found: Found) -> dict[str, str]:
    """What is the same for all evaluations once, the rest by model."""
    made = {name: read_stamp(Store(stage.out)) for name, stage in found.evaluations.items()}
    facts = {name: stamp.facts for name, stamp in made.items() if stamp}
    joined = dict[str, str]()
    for key in dict.fromkeys(key for own in facts.values() for key in own):
        values = {name: own[key] for name, own in facts.items() if key in own}
        same = len(set(values.values())) == 1 and len(values) == len(facts)
        joined |= {key: next(iter(values.values()))} if same else {f"{key}, {name}": v for name, v in values.items()}
    return joined | ({"Missing": ", ".join(found.missing)} if found.missing else {})


def _models(found: Found) -> dict[str, dict[str, str | None]]:
    return {
        name: {
            "model": stage.model.uri,
            "weights": stage.spec.weights_sha256,
            "evaluation": str(stage.out),
            "comparison": str(found.comparisons[name].out) if name in found.comparisons else None,
        }
        for name, stage in found.evaluations.items()
    }
