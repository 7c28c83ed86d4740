"""From averaged weights to a calibrated detector: after the last step, or offline from a checkpoint."""

from typing import TYPE_CHECKING

from torch import Tensor

from fmad_dist.config import RunConfig
from fmad_dist.detector import Detector
from fmad_dist.detector_files import DetectorSpec
from fmad_dist.features.prepare import PreparedFeatures
from fmad_dist.flow.couplings import merged_strength, strength_of
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.scoring.held_out import calibrate
from fmad_dist.training.data import TrainingData
from fmad_dist.training.engine import gather_objects
from fmad_dist.training.weights import averaged_weights

if TYPE_CHECKING:
    from fmad_dist.training.loop import TrainJob


def finish_run(job: "TrainJob") -> None:
    """Every rank calls: all of them gather the weights and score a share of the held-out normals."""
    network: NetworkSpec = job.engine.network.spec  # type: ignore[assignment]
    coupling = merged_strength(gather_objects(job.objective.strength.state()))
    weights = averaged_weights(job.engine, job.ema)
    detector = assemble(job.config, job.data, job.features, network, weights, coupling, job.config.train.steps)
    detector.place(job.engine.device)
    rate = job.config.calibration.false_alarm_rate
    detector.calibrated(calibrate(detector, job.data, job.world, gather_objects, job.bad.note, rate))
    job.bad.settle()
    if job.world.is_main:
        folder = job.config.run_dir / "detector"
        detector.save(folder)
        job.tracked.finish(folder)
        job.tracked.close()
    gather_objects(None)


def assemble(
    config: RunConfig,
    data: TrainingData,
    features: PreparedFeatures,
    network: NetworkSpec,
    weights: dict[str, Tensor],
    coupling: tuple[float, float],
    step: int,
) -> Detector:
    """The averaged network with everything around it, not yet calibrated."""
    manifests = {dataset.name: dataset.manifest for dataset in data.mixture.datasets}
    spec = DetectorSpec(
        features=config.features.model_copy(update={"cache": None}),
        backbone_digest=features.weights_digest,
        network=network,
        objective=config.objective,
        coupling_strength=strength_of(coupling),
        scorer=config.scorer,
        precision=config.calibration.precision,
        protocol=config.protocol,
        seed=config.train.seed,
        class_names=tuple(data.mixture.class_names),
        manifest_digests=data.mixture.digests,
        licences={name: manifest.licence for name, manifest in manifests.items()},
        train_step=step,
    )
    detector = Detector(spec)
    detector.backbone.load_state_dict(features.backbone.state_dict())
    detector.whitening.load_state_dict(features.whitening.state_dict())
    detector.network.load_state_dict(weights)
    numbers = data.mixture.class_numbers[features.rows]
    detector.class_means.copy_(features.class_means(numbers, len(spec.class_names)))
    return detector
