"""Evaluate a detector: score every test image once, on any number of processes, and write exact results."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmad_dist.base.console import counted, warn
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import override_scorer
from fmad_dist.config.protocol import Protocol, named_protocol
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import DetectorSpec, locate_detector, read_spec
from fmad_dist.evaluation.labelled_images import (
    LabelledBatch,
    LabelledImages,
    scored_images,
    shards_of_test_split,
    source_size,
)
from fmad_dist.evaluation.map_files import MapFiles
from fmad_dist.evaluation.provenance import configuration, evaluation_inputs, evaluation_key, provenance
from fmad_dist.evaluation.report import KEPT_FILES, OUTPUTS, SETTINGS_NAME, STATE_NAME, write_results_and_report
from fmad_dist.flow.noise import content_keys
from fmad_dist.jobs.folder import Identity
from fmad_dist.jobs.job import Job, complete
from fmad_dist.jobs.speed import ProcessSpeed, speed_of, write_speed
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import decode_state, encode_state
from fmad_dist.report.result_files import EVALUATION_FILES, read_results
from fmad_dist.storage import Store
from fmad_dist.stream.mixture import Mixture

SHOWN_CLASSES = 5  # of a list in a sentence


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and where results go."""

    model: str  # detector folder, run directory, URL of either or models:/ URI
    data: tuple[str, ...]  # URLs of converted datasets
    out: str  # folder for the results
    name: str = ""  # what the report calls the model; "" = `model`
    overrides: tuple[str, ...] = ()  # scorer.key=value
    protocol: str | None = None  # name of another protocol than the detector's
    maps: str | None = None  # URL of a folder for all anomaly maps in tars
    tiff: str | None = None  # the same as a tree of TIFFs
    workers: int = 0  # processes that read images, per rank
    save_s: float = 60.0  # between two writes of what a rank has scored, to go on from after a kill
    compiled: bool = False  # the network, for speed on a GPU
    overwrite: bool = False  # another evaluation in `out` may be replaced


def run_evaluation(options: EvaluationOptions, world: World) -> dict[str, Any] | None:
    """Every rank calls; the main rank returns the content of results.json, the others None.

    Raises:
        UserError: the model or a dataset cannot be read, a test image cannot be scored, or a map cannot be written;
            or `out` is refused, see `JobFolder.begin`.
    """
    return complete(EvaluationJob(options), options, world)


class EvaluationJob(Job[LabelledBatch, dict[str, Any]]):
    """One rank's part: a metric state, and the maps that are written beside."""

    title = "evaluate"
    detector: Detector

    def __init__(self, options: EvaluationOptions) -> None:
        self.options, self.out = options, Path(options.out)
        self.mixture = Mixture.load(options.data)
        self.model = locate_detector(options.model)
        self.spec = _evaluated(read_spec(self.model), options)
        self.shards = shards_of_test_split(self.mixture)
        self.state = EvaluationState(self.spec.protocol)
        key = evaluation_key(self.spec, self.mixture.digests)
        inputs = evaluation_inputs(self.spec, self.mixture.digests)
        urls = dict(zip(OUTPUTS, (options.maps, options.tiff), strict=True))
        outputs = {name: Store(url).path() for name, url in urls.items() if url}
        self.identity = Identity("an evaluation", "Scorer", key, inputs, outputs)
        self.files = MapFiles(options.maps, options.tiff, key, self.spec.protocol)

    def load(self, world: World) -> None:
        detector = Detector.load(self.model).with_scorer(self.spec.scorer).with_protocol(self.spec.protocol)
        assert detector.spec == self.spec
        self.detector = detector.move_to(world.device, self.options.compiled)
        if world.is_main:
            self.files.prepare()
            _tell_what_is_approximate(self.mixture)
            _tell_what_is_new(self.spec.class_names, self.mixture)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[LabelledBatch]:
        images = LabelledImages(self.mixture, self.spec.features.image_size, self.spec.protocol.map_size)
        return images.read(batches, self.options.workers)

    def score(self, batch: LabelledBatch) -> None:
        with self.watch.phase("features"):
            x = self.detector.features(batch.images)
        with self.watch.phase("score"):
            found = self.detector.score(x, content_keys(batch.images))
        with self.watch.phase("metrics"):
            images = list(scored_images(self.mixture, batch, found))
            for scored in images:
                self.state.update(scored)
        with self.watch.phase("save"):
            for row, scored in zip(batch.rows, images, strict=True):
                dataset, own_row = self.mixture.locate(row)
                self.files.add(scored, *source_size(dataset.sample(own_row)))

    def end_shard(self, number: int) -> None:
        self.files.end_shard(number)

    def flush(self) -> None:
        self.files.wait()

    def encoded(self) -> bytes:
        return encode_state(self.state)

    def merge(self, parts: Iterable[bytes]) -> bytes:
        return encode_state(merged_state(parts, self.spec.protocol))

    def facts(self) -> dict[str, str]:
        return provenance(self.detector, self.mixture, self.options.name or self.options.model)

    def write(self, parts: Sequence[bytes], speeds: Sequence[ProcessSpeed]) -> Sequence[str]:
        start = time.perf_counter()
        state, facts = merged_state(parts, self.spec.protocol), self.facts()
        check_complete(state, self.mixture)
        results = compute_results(state)
        ids = [self.mixture.sample_ids(np.concatenate(shard)) for shard in self.shards]
        self.files.write_index(ids, facts["Model"])
        speed = speed_of(speeds, time.perf_counter() - start, self.watch.device)
        Store(self.out).write(STATE_NAME, encode_state(state))
        Store(self.out).write(SETTINGS_NAME, configuration(self.spec).encode())
        write_speed(speed, self.out)
        write_results_and_report(self.out, state, results, facts)
        return (*KEPT_FILES, *EVALUATION_FILES)

    def finished(self) -> dict[str, Any]:
        return read_results(self.out)


def _evaluated(spec: DetectorSpec, options: EvaluationOptions) -> DetectorSpec:
    """That of the detector with the wanted scorer and protocol."""
    scorer = override_scorer(spec.scorer, options.overrides)
    protocol = spec.protocol if options.protocol is None else named_protocol(options.protocol)
    if (scorer, protocol) == (spec.scorer, spec.protocol):
        return spec
    return spec.model_copy(update={"scorer": scorer, "protocol": protocol, "calibration": None})


def merged_state(parts: Iterable[bytes], protocol: Protocol) -> EvaluationState:
    """What encoded states of this protocol say together."""
    state = EvaluationState(protocol)
    for part in parts:
        state.merge(decode_state(part))
    return state


def check_complete(state: EvaluationState, mixture: Mixture) -> None:
    """Raises:
    UserError: the scored ids are not exactly the test split of the datasets.
    """
    wanted = set(mixture.sample_ids(mixture.rows("test")))
    missing, extra = sorted(wanted - state.sample_ids), sorted(state.sample_ids - wanted)
    if missing or extra:
        raise UserError(
            f"evaluation: {len(missing)} test images were not scored and {len(extra)} are not in the manifests (first: "
            f"{(missing + extra)[0]}); run the evaluation again on unchanged manifests."
        )


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
