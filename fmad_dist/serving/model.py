"""The model that MLflow serves: a table of images -> a table of scores, decisions and errors; its signature."""

import base64
import os
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from PIL import Image

import fmad_dist
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.images.codec import png
from fmad_dist.serving.request_images import URLS_VARIABLE, ImageReader
from fmad_dist.serving.service import RequestOptions, Service
from fmad_dist.tracking.registered_files import check_served


class DetectorModel(PythonModel):
    """A column `image` (the bytes of image files as base64, or allowed URLs) -> a row of results per image."""

    def load_context(self, context: Any) -> None:
        check_served(Path(context.artifacts["detector"]).parents[1])
        reader = ImageReader.parse(os.environ.get(URLS_VARIABLE, ""))
        self.service = Service(Detector.load(context.artifacts["detector"]).move_to(World().device), reader)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            rows = self.service.answer(model_input["image"].tolist(), RequestOptions(**given))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(rows, dtype=object)  # of mixed kinds: None must not become NaN


def save_served(detector: Path, folder: Path, model_id: str | None = None, run_id: str | None = None) -> None:
    """Write a detector's folder as an MLflow model to `folder`, which must not exist; the ids are those of a logged
    model."""
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=mlflow.models.Model(model_id=model_id, run_id=run_id),
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={"detector": detector.resolve().as_uri()},  # a plain path with % would be taken for a quoted one
        signature=signature(),
        input_example=input_example(),
        pip_requirements=[f"fmad-dist>={fmad_dist.__version__}"],
    )


def signature() -> Any:
    """Return the ModelSignature: a column of images and three parameters -> a table of results."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    kinds = {"score": "double", "normalised": "double", "anomalous": "boolean", "class_name": "string"}
    kinds |= {"threshold": "double", "error": "string", "map": "string"}
    usual = RequestOptions()
    parameters = [
        ParamSpec("sensitivity", "double", usual.sensitivity),
        ParamSpec("threshold", "string", usual.threshold),
        ParamSpec("maps", "boolean", usual.maps),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec("string", "image")]),
        outputs=Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()]),
        params=ParamSchema(parameters),
    )


def input_example() -> tuple[Any, dict[str, Any]]:
    """Return a table with one small grey image, and the parameters with their defaults."""
    import pandas as pd

    image = base64.b64encode(png(Image.new("L", (8, 8), 128))).decode()
    return pd.DataFrame({"image": [image]}), {"sensitivity": 0.5, "threshold": "class", "maps": False}
