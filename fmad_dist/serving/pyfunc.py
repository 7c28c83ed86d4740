"""The code of a registered version: MLflow keeps a copy of this file with the version and runs it to load it.

A copy outlives the fmad that wrote it, so it imports one name that stays, and says what to do where it is missing.
"""

import mlflow

try:
    from fmad_dist.serving import served_model
except ImportError as error:
    raise ImportError(
        f"{error}; this version needs fmad-dist 0.2 or later, or register its run again with this one: "
        "fmad registry register --run RUN."
    ) from None

mlflow.models.set_model(served_model())
