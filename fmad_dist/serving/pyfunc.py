"""The registered model's code: MLflow runs this file when a version is loaded. It holds no pickled objects."""

import os
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.serving.service import Service, Wishes
from fmad_dist.serving.sources import URLS_VARIABLE, Sources
from fmad_dist.world import World


class DetectorModel(PythonModel):
    """A column `image` (the bytes of image files as base64, or allowed URLs) -> a row of results per image."""

    def load_context(self, context: Any) -> None:
        sources = Sources.parse(os.environ.get(URLS_VARIABLE, ""))
        self.service = Service(Detector.load(context.artifacts["detector"]).place(World().device), sources)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            rows = self.service.answer(model_input["image"].tolist(), Wishes(**given))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(rows, dtype=object)  # of mixed kinds: None must not become NaN


mlflow.models.set_model(DetectorModel())
