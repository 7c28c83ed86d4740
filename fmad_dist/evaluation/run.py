"""A whole evaluation: load the detector, score on all ranks, write results, report and tracking on the main one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmad_dist.config_files import override_scorer
from fmad_dist.detector import Detector
from fmad_dist.detector_files import DetectorSpec
from fmad_dist.evaluation.evaluator import evaluate_share, merge_states, test_shards
from fmad_dist.evaluation.map_files import MapFiles
from fmad_dist.evaluation.out_folder import prepare_out
from fmad_dist.evaluation.partial import PartialStates, evaluation_key
from fmad_dist.evaluation.protocol import named_protocol
from fmad_dist.evaluation.provenance import configuration, provenance
from fmad_dist.evaluation.report.html import REPORT_NAME, write_report
from fmad_dist.evaluation.report.tables import write_tables
from fmad_dist.evaluation.results import EVALUATION_FILES, Results, write_results
from fmad_dist.evaluation.speed import Speed, Stopwatch, speed_of, write_speed
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.shares import LONGEST_WAIT
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import write_stamp
from fmad_dist.stream.mixture import Mixture
from fmad_dist.tracking.uploader import warn
from fmad_dist.training.engine import gather_objects
from fmad_dist.wording import counted
from fmad_dist.world import World

SHOWN_CLASSES = 5  # of a list in a sentence
STATE_NAME = "state.safetensors"  # everything that was counted; evaluations can be joined from it without scoring again


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
    maps: str | None = None  # URL of a folder for all anomaly maps in tars
    tiff: str | None = None  # the same as a tree of TIFFs
    protocol: str | None = None  # name of another protocol than the detector's
    overwrite: bool = False  # another evaluation in `out` may be replaced
    compiled: bool = False  # the network, for speed on a GPU


def run_evaluation(options: EvaluationOptions, world: World) -> Results | None:
    """Every rank calls; the main rank returns the results, the others None.

    Raises:
        UserError: the model or a manifest cannot be read, a test image cannot be scored, or a map cannot be written;
            or `out` is refused, see `prepare_out`.
    """
    mixture = Mixture.load(options.manifests)
    detector = Detector.load(options.model)
    detector.with_scorer(override_scorer(detector.spec.scorer, options.overrides))
    if options.protocol is not None:
        detector.with_protocol(named_protocol(options.protocol))
    world.join(timeout=LONGEST_WAIT)
    key = evaluation_key(detector.spec, mixture.digests)
    outputs = (options.maps, options.tiff)
    of_outputs = evaluation_key(detector.spec, mixture.digests, outputs)
    partial = PartialStates(options.out, of_outputs, world.rank, options.save_s)
    files = MapFiles(*outputs, key, detector.spec.protocol)
    facts = provenance(detector, mixture, options.name)
    if world.is_main:
        prepare_out(options.out, key, facts, options.overwrite)
        files.prepare()
        _tell_what_is_approximate(mixture)
        _tell_what_is_new(detector.spec.class_names, mixture)
    base = partial.collect(detector.spec.protocol) if world.is_main else EvaluationState(detector.spec.protocol)
    done = gather_objects(base.sample_ids)[0]
    if done and world.is_main:
        print(f"{len(done)} images were scored before; going on with the others", flush=True)
    watch = Stopwatch(world.device)
    state = evaluate_share(
        detector, mixture, world, world.device, options.workers, done, partial, files, watch, options.compiled
    )
    shares = gather_objects(watch.stop())
    parts = gather_bytes(state.to_bytes(), world)
    if parts is None:
        return None
    start = time.perf_counter()
    merged = merge_states([base.to_bytes(), *parts], mixture)
    results = merged.compute()
    shards = [mixture.sample_ids(np.concatenate(shard)) for shard in test_shards(mixture)]
    files.write_index(shards, options.name)
    speed = speed_of(shares, time.perf_counter() - start, world.device)
    _write(options.out, detector.spec, facts, merged, results, speed)
    write_stamp(Store(options.out), key, facts, (STATE_NAME, *EVALUATION_FILES))
    partial.clear()
    return results


def _tell_what_is_approximate(mixture: Mixture) -> None:
    for dataset in mixture.datasets:
        if dataset.manifest.mask_semantics == "channel" and not dataset.stores_native_masks:
            print(
                f"{dataset.name}: only resized masks are stored, so AU-sPRO is measured on the map (au_spro_map); "
                "convert the dataset again for the official one, which is measured at the size of the images",
                flush=True,
            )


def _tell_what_is_new(trained: Sequence[str], mixture: Mixture) -> None:
    tested = {
        f"{dataset.name}/{name}"
        for dataset in mixture.datasets
        for name, counts in dataset.manifest.classes.items()
        if counts.test_normal + counts.test_anomalous
    }
    new = sorted(tested.difference(trained))
    if new:
        which = ", ".join(new[:SHOWN_CLASSES]) + (", ..." if len(new) > SHOWN_CLASSES else "")
        warn(f"the model never trained on {len(new)} of {counted(len(tested), 'test class', 'test classes')}: {which}")


def _write(
    out: Path, spec: DetectorSpec, facts: dict[str, str], state: EvaluationState, results: Results, speed: Speed
) -> None:
    """The state and EVALUATION_FILES."""
    Store(out).write(STATE_NAME, state.to_bytes())
    write_results(results, out)
    write_speed(speed, out)
    write_tables(results, out)
    settings = configuration(spec)
    page = out / REPORT_NAME
    write_report(results, state, page, title="fmad evaluation", facts=facts, configuration=settings, speed=speed)


def gather_bytes(data: bytes, world: World) -> list[bytes] | None:
    """The bytes of all ranks on the main rank, None elsewhere."""
    if world.size == 1:
        return [data]
    import torch.distributed as dist

    parts: list[bytes] | None = [b""] * world.size if world.is_main else None
    dist.gather_object(data, parts, dst=0)
    world.leave()
    return parts
