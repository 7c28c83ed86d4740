"""After the last step: consolidate the averaged weights into a calibrated detector and register it."""

from typing import TYPE_CHECKING

from fmad_dist.detector import Detector, DetectorSpec
from fmad_dist.flow.couplings import merged_strength, strength_of
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.scoring.held_out import calibrate
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.weights import averaged_weights

if TYPE_CHECKING:
    from fmad_dist.training.loop import TrainJob


def finish_run(job: "TrainJob") -> None:
    """Every rank calls: all of them gather the weights and score a share of the held-out normals."""
    detector = build_detector(job).place(job.engine.device)
    rate = job.config.calibration.false_alarm_rate
    detector.calibrated(calibrate(detector, job.data, job.world, gather_objects, job.bad.note, rate))
    job.bad.settle()
    if job.world.is_main:
        folder = job.config.run_dir / "detector"
        detector.save(folder)
        job.tracked.finish(folder)
    gather_objects(None)


def build_detector(job: "TrainJob") -> Detector:
    """The averaged network with everything around it, not yet calibrated."""
    config = job.config
    network: NetworkSpec = job.engine.network.spec  # type: ignore[assignment]
    sums = merged_strength(gather_objects(job.objective.strength.state()))
    manifests = {dataset.name: dataset.manifest for dataset in job.data.mixture.datasets}
    spec = DetectorSpec(
        features=config.features.model_copy(update={"cache": None}),
        backbone_digest=job.features.weights_digest,
        network=network,
        objective=config.objective,
        coupling_strength=strength_of(sums),
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
