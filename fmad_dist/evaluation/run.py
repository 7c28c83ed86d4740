"""A whole evaluation: load the detector, score on all ranks, write results, report and tracking on the main one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fmad_dist.config_files import override_scorer
from fmad_dist.detector import Detector
from fmad_dist.evaluation.evaluator import evaluate_share, merge_states
from fmad_dist.evaluation.partial import PartialStates, evaluation_key
from fmad_dist.evaluation.report.html import write_report
from fmad_dist.evaluation.results import RESULTS_NAME, SCORES_NAME, TABLE_NAME, Results, write_results
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.networks.build import describe_network
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import write_stamp
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.engine import gather_objects
from fmad_dist.world import World

STATE_NAME = "state.safetensors"  # everything that was counted; evaluations can be joined from it without scoring again
REPORT_NAME = "report.html"
LONGEST_WAIT = timedelta(days=7)  # of a quick rank for a slow one; the launcher ends the ranks that wait for a dead one


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and where results go."""

    model: str
    name: str
    manifests: Sequence[str]
    out: Path
    workers: int = 0
    save_s: float = 60.0  # between two writes of what a rank has scored, to go on from after a kill
    overrides: Sequence[str] = ()  # scorer.key=value


def run_evaluation(options: EvaluationOptions, world: World) -> Results | None:
    """Every rank calls; the main rank returns the results, the others None.

    Raises:
        UserError: the model or a manifest cannot be read, or a test image cannot be scored.
    """
    mixture = Mixture.load(options.manifests)
    detector = Detector.load(options.model)
    detector.with_scorer(override_scorer(detector.spec.scorer, options.overrides))
    world.join(timeout=LONGEST_WAIT)
    key = evaluation_key(detector.spec, mixture.digests)
    partial = PartialStates(options.out, key, world.rank, options.save_s)
    base = partial.collect(detector.spec.protocol) if world.is_main else EvaluationState(detector.spec.protocol)
    done = gather_objects(base.sample_ids)[0]
    if done and world.is_main:
        print(f"{len(done)} images were scored before; going on with the others", flush=True)
    state = evaluate_share(detector, mixture, world, world.device, options.workers, done, partial)
    parts = gather_bytes(state.to_bytes(), world)
    if parts is None:
        return None
    merged = merge_states([base.to_bytes(), *parts], mixture)
    results = merged.compute()
    _write(options, key, detector, mixture, merged, results)
    partial.clear()
    return results


def _write(
    options: EvaluationOptions,
    key: str,
    detector: Detector,
    mixture: Mixture,
    state: EvaluationState,
    results: Results,
) -> None:
    store = Store(options.out)
    store.write(STATE_NAME, state.to_bytes())
    write_results(results, options.out)
    spec = detector.spec
    trained_on = ", ".join(f"{name} {digest[:12]}" for name, digest in spec.manifest_digests.items())
    facts = {
        "Model": options.name,
        "Scorer": " ".join(f"{key}={value}" for key, value in spec.scorer.model_dump().items()),
        "Network evaluations per image": str(detector.scorer.evaluations),
        "Network": describe_network(spec.network),
        "Objective": f"path {spec.objective.path}, coupling {spec.objective.coupling}",
        "Backbone": f"{spec.features.backbone} (weights {spec.backbone_digest[:12]})",
        "Training steps": str(spec.train_step),
        "Trained on": trained_on,
        "Tested on": ", ".join(f"{d.name} {d.manifest.digest[:12]}" for d in mixture.datasets),
        "Licences": ", ".join(f"{name}: {licence}" for name, licence in spec.licences.items()),
    }
    write_report(results, state, options.out / REPORT_NAME, title="fmad evaluation", facts=facts)
    write_stamp(store, key, facts, (STATE_NAME, SCORES_NAME, TABLE_NAME, RESULTS_NAME, REPORT_NAME))


def gather_bytes(data: bytes, world: World) -> list[bytes] | None:
    """The bytes of all ranks on the main rank, None elsewhere."""
    if world.size == 1:
        return [data]
    import torch.distributed as dist

    parts: list[bytes] | None = [b""] * world.size if world.is_main else None
    dist.gather_object(data, parts, dst=0)
    world.leave()
    return parts
