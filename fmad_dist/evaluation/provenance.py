"""Where the numbers of an evaluation come from: model, data, settings and code."""

import json
from collections.abc import Mapping

from fmad_dist.base.version import code_version
from fmad_dist.config.files import flat_config
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import DetectorSpec
from fmad_dist.metrics.wire import FORMAT
from fmad_dist.networks.build import describe_network
from fmad_dist.storage.stamp import key_of
from fmad_dist.stream.mixture import Mixture

_SHOWN = 12  # hexadecimal digits of a digest


def evaluation_key(spec: DetectorSpec, manifests: Mapping[str, str]) -> str:
    """Stands for everything that the results depend on; `manifests` are digests by dataset name."""
    return key_of({"detector": spec.model_dump(mode="json"), "manifests": dict(manifests), "format": FORMAT})


def evaluation_inputs(spec: DetectorSpec, manifests: Mapping[str, str]) -> dict[str, str]:
    """The same in words."""
    return {
        "Weights": f"sha256 {spec.weights_sha256[:_SHOWN]}, after {spec.train_step} training steps",
        "Scorer": " ".join(f"{key}={value}" for key, value in flat_config(spec.scorer).items()),
        "Protocol": spec.protocol.title,
        "Tested on": _listed(manifests),
    }


def provenance(detector: Detector, mixture: Mixture, model: str) -> dict[str, str]:
    """The facts of a report by their names. Nothing in them depends on how many processes evaluated."""
    spec = detector.spec
    inputs = evaluation_inputs(spec, mixture.digests)
    tested_on = inputs.pop("Tested on")
    return {
        "Model": model,
        **inputs,
        "Network evaluations per image": str(detector.scorer.evaluations),
        "Network": describe_network(spec.network),
        "Objective": f"path {spec.objective.path}, coupling {spec.objective.coupling}",
        "Backbone": f"{spec.features.backbone} (weights {spec.backbone_digest[:_SHOWN]})",
        "Trained on": _listed(spec.manifest_digests),
        "Tested on": tested_on,
        "Licences": ", ".join(f"{name}: {licence}" for name, licence in spec.licences.items()),
        "Code": code_version(),
    }


def configuration(spec: DetectorSpec) -> str:
    """The detector's settings as JSON: `detector.json` without what the facts say and without the calibration."""
    left_out = {"manifest_digests", "licences", "class_names", "calibration", "weights_sha256", "spec_sha256"}
    return json.dumps(spec.model_dump(mode="json", exclude=left_out), indent=2)


def _listed(manifests: Mapping[str, str]) -> str:
    return ", ".join(f"{name}, manifest {digest[:_SHOWN]}" for name, digest in manifests.items())
