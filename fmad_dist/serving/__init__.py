"""What MLflow loads and serves: a registered detector that answers requests with images.

Every registered version imports `served_model` from here, so this name stays.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModel


def served_model() -> "PythonModel":
    """Make the model behind a registered version; MLflow gives it the detector's files when it loads it."""
    from fmad_dist.serving.model import DetectorModel

    return DetectorModel()
