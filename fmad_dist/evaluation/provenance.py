"""Where the numbers of an evaluation come from: model, data, settings and code."""

import json

from fmad_dist.code_version import code_version
from fmad_dist.config_files import flat_config
from fmad_dist.detector import Detector
from fmad_dist.detector_files import DetectorSpec
from fmad_dist.networks.build import describe_network
from fmad_dist.stream.mixture import Mixture

_SHOWN = 12  # hexadecimal digits of a digest


def provenance(detector: Detector, mixture: Mixture, model: str) -> dict[str, str]:
    """The facts of a report by their names. Nothing in them depends on how many processes evaluated."""
    spec = detector.spec
    digests = {name: digest[:_SHOWN] for name, digest in spec.manifest_digests.items()}
    return {
        "Model": model,
        "Weights": f"sha256 {spec.weights_sha256[:_SHOWN]}, after {spec.train_step} training steps",
        "Scorer": " ".join(f"{key}={value}" for key, value in flat_config(spec.scorer).items()),
        "Protocol": spec.protocol.title,
        "Network evaluations per image": str(detector.scorer.evaluations),
        "Network": describe_network(spec.network),
        "Objective": f"path {spec.objective.path}, coupling {spec.objective.coupling}",
        "Backbone": f"{spec.features.backbone} (weights {spec.backbone_digest[:_SHOWN]})",
        "Trained on": ", ".join(f"{name}, manifest {digest}" for name, digest in digests.items()),
        "Tested on": ", ".join(f"{d.name}, manifest {d.manifest.digest[:_SHOWN]}" for d in mixture.datasets),
        "Licences": ", ".join(f"{name}: {licence}" for name, licence in spec.licences.items()),
        "Code": code_version(),
    }


def configuration(spec: DetectorSpec) -> str:
    """The detector's settings as JSON: `detector.json` without what the facts say and without the calibration."""
    left_out = {"manifest_digests", "licences", "class_names", "calibration", "weights_sha256", "spec_sha256"}
    return json.dumps(spec.model_dump(mode="json", exclude=left_out), indent=2)
