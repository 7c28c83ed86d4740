"""Do the registered files say what was evaluated? Images of the evaluation are scored again, through MLflow."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.images import png
from fmad_dist.registry.evidence import Evaluated
from fmad_dist.registry.gate import Parity
from fmad_dist.registry.versions import answered, uri_of


def measure_parity(
    version: Any, spec: Any, evaluated: Evaluated, scores: Mapping[str, float], num_images: int
) -> Parity:
    """Score images of the evaluation, evenly taken from all of them, with what `mlflow.pyfunc` loads.

    Raises:
        UserError: the registry or the test data cannot be read, or the data changed.
    """
    import mlflow

    chosen = spread(sorted(scores), num_images)
    images = _read(evaluated, spec.features.image_size, chosen)
    with answered(uri_of(version)):
        model = mlflow.pyfunc.load_model(uri_of(version))
    table = model.predict(_request(images))
    found = np.array(table["score"], dtype=np.float64)
    wanted = np.array([scores[name] for name in chosen])
    limits = np.array(table["threshold"], dtype=np.float64)
    flipped = int(np.sum((wanted > limits) != np.array(table["anomalous"], dtype=bool)))
    return Parity(len(chosen), float(np.max(np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-6))), flipped)


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` names at equal distances, so that every class has its turn in a sorted list."""
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [names[place] for place in places]


def _read(evaluated: Evaluated, image_size: int, chosen: Sequence[str]) -> list[np.ndarray]:
    """uint8 [S, S, 3] per sample id."""
    from fmad_dist.stream.mixture import Mixture
    from fmad_dist.stream.sources import ImageSource

    mixture = Mixture.load(evaluated.manifests)
    for name, digest in mixture.digests.items():
        if evaluated.tested_on.get(name) != digest:
            raise UserError(f"{name}: changed after the evaluation; evaluate the version again.")
    rows = mixture.rows("test")
    places = dict(zip(mixture.sample_ids(rows), rows.tolist(), strict=True))
    source = ImageSource(mixture, image_size)
    return [source.read(places[name]).permute(1, 2, 0).numpy() for name in chosen]


def _request(images: Sequence[np.ndarray]) -> Any:
    """The images as a client would send them; PNG loses nothing."""
    import pandas as pd
    from PIL import Image

    return pd.DataFrame({"image": [base64.b64encode(png(Image.fromarray(pixels))).decode() for pixels in images]})
