"""Registered versions of the detector: an MLflow pyfunc model whose files are the detector folder itself."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fmad_dist.config import RunConfig
from fmad_dist.errors import UserError, first_line
from fmad_dist.tracking.runs import connect, tracking_uri


def register_detector(detector: Path, config: RunConfig, run_id: str) -> str:
    """Log the detector folder to the run as a pyfunc model, register it and give it the alias `candidate`.

    Returns the version. Raises:
        UserError: the server refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    name = config.tracking.model_name
    try:
        client = connect(tracking_uri(config))
        version = _log_model(detector, name, run_id)
        client.set_registered_model_alias(name, "candidate", version)
        spec = json.loads((detector / "detector.json").read_text())
        for key in ("manifest_digests", "licences", "class_names"):
            client.set_model_version_tag(name, version, f"fmad.{key}", json.dumps(spec[key])[:4900])
    except (MlflowException, OSError) as error:
        raise UserError(f"{detector}: the registry did not take the model ({first_line(error)}).") from None
    return version


def download_model(uri: str) -> Path:
    """The files of a registered model as a local folder.

    Raises:
        UserError: the registry has no such model or version, or cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    target = Path(tempfile.mkdtemp(prefix="fmad-model-"))
    import atexit

    atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))
    except (MlflowException, OSError) as error:
        where = mlflow.get_registry_uri()
        raise UserError(
            f"{uri}: not in the registry at {where} ({first_line(error)}); check the name, the alias and "
            "MLFLOW_TRACKING_URI (or --tracking-uri)."
        ) from None


def _log_model(detector: Path, name: str, run_id: str) -> str:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    from fmad_dist.tracking.pyfunc import MODEL_CODE

    size = json.loads((detector / "detector.json").read_text())["features"]["image_size"]
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3), "images")])
    outputs = Schema([ColSpec("double", "score"), ColSpec("boolean", "anomalous"), ColSpec("string", "class_name")])
    with mlflow.start_run(run_id=run_id):
        logged: Any = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(MODEL_CODE),
            artifacts={"detector": str(detector)},
            signature=ModelSignature(inputs, outputs),
            pip_requirements=["fmad-dist"],
            registered_model_name=name,
        )
    return str(logged.registered_model_version)
