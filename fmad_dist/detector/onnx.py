"""A detector as one ONNX graph, from pixels to the decision; written only if ONNX Runtime says what torch says."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.config.scorers import ScorerConfig, default_config, scorer_names
from fmad_dist.detector.detector import Detector
from fmad_dist.flow.solvers import Field
from fmad_dist.images.codec import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.scoring.interface import method_of
from fmad_dist.storage import Store

OPSET = 18
INPUT = "images"
OUTPUTS = ("score", "normalised", "anomalous", "class_index", "map", "relative_map")
BATCH = 5  # of no power of two, so that the last batch differs from the others
TOLERANCE = 1e-3
AGREEMENT = "agreement_with_torch"  # what the file says of how it was checked, beside what it was made from
_LARGEST = 2**31 - 1  # bytes of a protobuf


class DetectorGraph(nn.Module):
    """uint8 RGB [B, S, S, 3] -> score [B], normalised [B], anomalous bool [B], class_index int64 [B], map and
    relative_map [B, M, M], all of which `Detections` describes."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.field = _WholeBatch(detector.network, detector.field.path, detector.field.dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        x = detector.whitening(detector.backbone.at_once(images.permute(0, 3, 1, 2)))
        found = detector.judge(x, detector.scorer(self.field, x, ()))
        decisions = found.scores, found.normalised, found.anomalous, found.classes
        return *decisions, found.maps, found.relative_maps


class _WholeBatch(Field):
    """A graph has no loop over the images of a batch."""

    def _run(self, x: Tensor, t: Tensor) -> Tensor:
        return self._predict(x, t)


def build_graph(detector: Detector) -> Any:
    """The ONNX model of a detector on the CPU, for any number of images.

    Raises:
        UserError: its scorer needs what a graph cannot do, or the exporter does not know a part of the networks.
    """
    if detector.spec.precision != "fp32":
        raise UserError(
            f"calibration.precision: this detector computes in {detector.spec.precision}, and only one of float32 "
            "becomes a graph; make another with `fmad train` or from its config.yaml and calibration.precision=fp32."
        )
    _check_scorer(detector.spec.scorer)
    side = detector.image_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                DetectorGraph(detector).eval(),
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"this detector's networks have no ONNX form ({first_line(error)}).") from None
    assert program is not None
    return program.model_proto


def _check_scorer(scorer: ScorerConfig) -> None:
    """Check that a graph can hold the scorer.

    Raises:
        UserError: it cannot.
    """
    reason = method_of(scorer).export_refusal()
    if reason:
        others = [name for name in scorer_names() if not method_of(default_config(name)).export_refusal()]
        raise UserError(f"scorer.name: {scorer.name} {reason}; what can be exported: {', '.join(others)}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's log and warnings, which are for its own developers."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest differences over all images, relative to torch's values."""

    num_images: int
    score: float  # of an image's score
    map: float  # of a pixel, relative to the largest of its map
    num_flipped: int  # images with another decision or class
    num_anomalous: int


def compare(detector: Detector, model: bytes, images: Tensor) -> Agreement:
    """Run both on uint8 RGB images [N, 3, S, S]."""
    session = runtime(model)
    score = pixel = 0.0
    flipped = anomalous = 0
    for batch in images.split(BATCH):
        found = detector(batch)
        theirs = run(session, batch.permute(0, 2, 3, 1).contiguous().numpy())
        ours = found.scores.numpy()
        scale = np.abs(ours) + 1e-3 * np.abs(ours).max()  # a fusion's scores may be near zero
        score = max(score, float((np.abs(theirs["score"] - ours) / scale).max()))
        pixel = max(pixel, _map_error(theirs["map"], found.maps.numpy()))
        differs = (theirs["anomalous"] != found.anomalous.numpy()) | (theirs["class_index"] != found.classes.numpy())
        flipped += int(differs.sum())
        anomalous += int(found.anomalous.sum())
    return Agreement(len(images), score, pixel, flipped, anomalous)


def _map_error(theirs: np.ndarray, ours: np.ndarray) -> float:
    largest = np.abs(ours).max(axis=(1, 2))
    return float((np.abs(theirs - ours).max(axis=(1, 2)) / np.maximum(largest, 1e-12)).max())


def runtime(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name for uint8 RGB [B, S, S, 3]."""
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images}), strict=True))


def export_onnx(detector: Detector, out: str, images: Tensor) -> Agreement:
    """Write `out` (a path or URL); returns the `Agreement` on uint8 RGB images [N, 3, S, S].

    The file's metadata `fmad` says in JSON what it was made from and what the outputs mean.

    Raises:
        UserError: the detector has no ONNX form, ONNX Runtime disagrees, or the packages are missing.
    """
    _check_packages()
    import onnx

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
    facts = _facts(detector) | {AGREEMENT: asdict(agreement)}
    onnx.helper.set_model_props(model, {"fmad": json.dumps(facts)})
    store, name = _folder_and_name(out)
    store.write(name, model.SerializeToString())
    return agreement


def check_replaced(out: str, detector: Detector) -> None:
    """Refuse to replace a file that was made from another detector, or with another sensitivity.

    Raises:
        UserError: `out` is such a file.
    """
    _check_packages()
    store, name = _folder_and_name(out)
    if store.exists(name) and _held(store.read(name)) != json.loads(json.dumps(_facts(detector))):
        raise UserError(f"{out}: holds another model; choose another --out, or give --overwrite to replace it.")


def _held(data: bytes) -> dict[str, Any]:
    """What an ONNX file says it was made from; nothing if fmad did not make it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        said = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    except DecodeError:
        return {}
    return {key: value for key, value in json.loads(said.get("fmad", "{}")).items() if key != AGREEMENT}


def _folder_and_name(out: str) -> tuple[Store, str]:
    folder, _, name = out.rpartition("/")
    return Store(folder or "."), name


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


def _facts(detector: Detector) -> dict[str, Any]:
    """What the file was made from and what the outputs mean."""
    spec = detector.spec
    return {
        "class_names": spec.class_names,
        "image_size": detector.image_size,
        "thresholds": detector.thresholds.tolist(),
        "sensitivity": detector.sensitivity,
        "scorer": spec.scorer.model_dump(mode="json"),
        "weights_sha256": spec.weights_sha256,
        "manifest_digests": spec.manifest_digests,
        "licences": spec.licences,
    }


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'fmad-dist[onnx]'`.") from None
