"""What a registered detector takes and gives, as MLflow states it."""

import base64
from typing import Any

from PIL import Image

from fmad_dist.images import png
from fmad_dist.serving.service import Wishes


def signature() -> Any:
    """A column of images and three parameters -> a table of results."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    kinds = {"score": "double", "normalised": "double", "anomalous": "boolean", "class_name": "string"}
    kinds |= {"threshold": "double", "error": "string", "map": "string"}
    usual = Wishes()
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
    """A table with one small grey image, and parameters."""
    import pandas as pd

    image = base64.b64encode(png(Image.new("L", (8, 8), 128))).decode()
    return pd.DataFrame({"image": [image]}), {"sensitivity": 0.5, "threshold": "class", "maps": False}
