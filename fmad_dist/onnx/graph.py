"""A detector as one ONNX graph, from 8-bit pixels to the decision."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fmad_dist.detector import Detector
from fmad_dist.errors import UserError, first_line
from fmad_dist.flow.fields import Field
from fmad_dist.scoring.config import DeviationConfig, FusionConfig, ReconstructionConfig, ScorerConfig

OPSET = 18
INPUT = "images"
OUTPUTS = ("score", "normalised", "anomalous", "class_index", "map", "relative_map")
PORTABLE = ("inversion", "endpoint", "residual", "ddim")


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
        return self._answer(x, t)


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
    """Draws are keyed by the pixels of an image, and derivatives are taken by autograd; a graph has neither."""
    if isinstance(scorer, FusionConfig):
        for part in scorer.parts:
            _check_scorer(part)
        return
    if isinstance(scorer, DeviationConfig):
        return  # its part draws nothing
    inverted = isinstance(scorer, ReconstructionConfig) and scorer.start == "invert"
    if scorer.name not in PORTABLE and not inverted:
        raise UserError(
            f"scorer.name: {scorer.name} draws random numbers for every image, which an ONNX graph cannot; what can be "
            f"exported: {', '.join(PORTABLE)}, and deviations and fusions of them."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its own developers much."""
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
