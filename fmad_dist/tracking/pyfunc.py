"""The registered model's code: MLflow runs this file when a version is loaded. It holds no pickled objects."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

from fmad_dist.detector import Detector


class DetectorModel(PythonModel):
    """uint8 RGB images [B, S, S, 3] -> a table with score, anomalous and class_name per image."""

    def load_context(self, context: Any) -> None:
        self.detector = Detector.load(context.artifacts["detector"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        images = torch.from_numpy(np.ascontiguousarray(np.asarray(model_input, dtype=np.uint8)))
        found = self.detector(images.permute(0, 3, 1, 2).contiguous())
        names = self.detector.spec.class_names
        return pd.DataFrame(
            {
                "score": found.scores.double().tolist(),
                "anomalous": found.anomalous.tolist(),
                "class_name": [names[number] for number in found.classes.tolist()],
            }
        )


mlflow.models.set_model(DetectorModel())
