"""A detector as an `.onnx` file, written only if ONNX Runtime says the same as torch."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError
from fmad_dist.images import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.storage import Store

TOLERANCE = 1e-3
_LARGEST = 2**31 - 1  # bytes of a protobuf


def export_onnx(detector: Detector, out: str, images: Tensor) -> Any:
    """Write `out` (a path or URL); returns the `Agreement` on uint8 RGB images [N, 3, S, S].

    The file's metadata `fmad` says in JSON what it was made from and what the outputs mean.

    Raises:
        UserError: the detector has no ONNX form, ONNX Runtime disagrees, or the packages are missing.
    """
    _check_packages()
    from fmad_dist.onnx.agreement import compare
    from fmad_dist.onnx.graph import build_graph

    model = build_graph(detector)
    if model.ByteSize() > _LARGEST:
        raise UserError(f"{out}: the weights do not fit into one ONNX file of 2 GB; export a smaller network.")
    agreement = compare(detector, model.SerializeToString(), images)
    if max(agreement.score, agreement.map) > TOLERANCE or agreement.num_flipped:
        raise UserError(
            f"{out}: not written, ONNX Runtime and torch disagree on {agreement.num_images} images: scores by up to "
            f"{agreement.score:.2g}, maps by {agreement.map:.2g} of their values (allowed {TOLERANCE:g}), "
            f"{agreement.num_flipped} other decisions."
        )
    _describe(model, detector, asdict(agreement))
    folder, _, name = out.rpartition("/")
    Store(folder or ".").write(name, model.SerializeToString())
    return agreement


def check_images(detector: Detector, source: str | None, count: int) -> Tensor:
    """The first `count` images below a folder or URL, or made ones of smooth colours: uint8 [N, 3, S, S].

    Raises:
        UserError: there are none, or one cannot be decoded.
    """
    side = detector.image_size
    if source is None:
        pictures = [_made(number, side) for number in range(count)]
    else:
        store = Store(source)
        names = [name for name in store.list() if name.lower().endswith(IMAGE_SUFFIXES)][:count]
        if not names:
            raise UserError(f"{source}: no images found ({', '.join(IMAGE_SUFFIXES)}); check the path.")
        files = [(store.read(name), store.url_of(name)) for name in names]
        pictures = [np.asarray(square_rgb(open_image(data, where), side, where)) for data, where in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _made(number: int, side: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _describe(model: Any, detector: Detector, agreement: dict[str, Any]) -> None:
    import onnx

    spec = detector.spec
    facts = {
        "class_names": spec.class_names,
        "image_size": detector.image_size,
        "thresholds": detector.thresholds.tolist(),
        "sensitivity": detector.sensitivity,
        "scorer": spec.scorer.model_dump(mode="json"),
        "weights_sha256": spec.weights_sha256,
        "manifest_digests": spec.manifest_digests,
        "licences": spec.licences,
        "agreement_with_torch": agreement,
    }
    onnx.helper.set_model_props(model, {"fmad": json.dumps(facts)})


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'fmad-dist[onnx]'`.") from None
