"""After the last step: consolidate the averaged weights into a calibrated detector and register it."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fmad_dist.detector import Detector, DetectorSpec
from fmad_dist.errors import UserError
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.scoring.calibration import Calibration, fit_thresholds
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.weights import averaged_weights

if TYPE_CHECKING:
    from fmad_dist.training.loop import TrainJob

SCORE_BATCH = 16


def finish_run(job: "TrainJob") -> None:
    """Every rank calls: all of them gather the weights and score a share of the held-out normals."""
    detector = build_detector(job).place(job.engine.device)
    detector.calibrated(calibrate(detector, job))
    if job.world.is_main:
        folder = job.config.run_dir / "detector"
        detector.save(folder)
        job.tracked.finish(folder)
    gather_objects(None)


def build_detector(job: "TrainJob") -> Detector:
    """The averaged network with everything around it, not yet calibrated."""
    config = job.config
    network: DiTSpec = job.engine.network.spec  # type: ignore[assignment]
    manifests = {dataset.name: dataset.manifest for dataset in job.data.mixture.datasets}
    spec = DetectorSpec(
        features=config.features.model_copy(update={"cache": None}),
        backbone_digest=job.features.weights_digest,
        network=network,
        scorer=config.scorer,
        protocol=config.protocol,
        seed=config.train.seed,
        class_names=tuple(job.data.mixture.class_names),
        manifest_digests={name: manifest.digest for name, manifest in manifests.items()},
        licences={name: manifest.licence for name, manifest in manifests.items()},
        train_step=config.train.steps,
    )
    detector = Detector(spec)
    detector.backbone.load_state_dict(job.features.backbone.state_dict())
    detector.whitening.load_state_dict(job.features.whitening.state_dict())
    detector.network.load_state_dict(averaged_weights(job.engine, job.ema))
    numbers = job.data.mixture.class_numbers[job.features.rows]
    detector.class_means.copy_(job.features.class_means(numbers, len(spec.class_names)))
    return detector


def calibrate(detector: Detector, job: "TrainJob") -> Calibration:
    """Thresholds from the scores of the held-out normals, which no training step has seen.

    Raises:
        UserError: more held-out images are damaged than `data.max_bad_samples` allows, or all of a class.
    """
    rows = job.data.split.held_out
    share = rows[job.world.share(len(rows))]
    images = job.data.images
    scores: list[float] = []
    for start in range(0, len(share), SCORE_BATCH):
        found = images.decode(images.fetch(share[start : start + SCORE_BATCH].tolist()))
        readable = [image for image in found if not isinstance(image, BadSample)]
        scored = iter(detector(torch.stack(readable)).scores.tolist() if readable else [])
        scores += [float("nan") if isinstance(image, BadSample) else next(scored) for image in found]
        job.bad.note(image for image in found if isinstance(image, BadSample))
    job.bad.settle()
    gathered = np.array([score for part in gather_objects(scores) for score in part])
    usable = ~np.isnan(gathered)
    numbers = job.data.mixture.class_numbers[rows][usable]
    empty = set(range(len(detector.spec.class_names))) - set(numbers.tolist())
    if empty:
        name = detector.spec.class_names[min(empty)]
        raise UserError(f"class {name}: no held-out image could be read, so it has no threshold; restore its shards.")
    rate = job.config.calibration.false_alarm_rate
    return fit_thresholds(gathered[usable], numbers, len(detector.spec.class_names), rate)
