"""`fmad export` and `fmad export-onnx`: a detector out of a checkpoint, and out of torch."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli import options


def export(
    run: options.Run,
    out: Annotated[Path, typer.Option("--out", help="Folder of the detector.")],
    step: Annotated[int | None, typer.Option("--step", help="Checkpoint of this step; default the newest.")] = None,
    overwrite: options.Overwrite = False,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Make a calibrated detector from a checkpoint, on one machine without a GPU."""
    from fmad_dist.training.export import export as job

    typer.echo(f"detector of step {job(run, step, out, overwrite)}: {out}")


def export_onnx(
    model: options.Model,
    out: Annotated[str, typer.Option("--out", help="The .onnx file: a path or any fsspec URL.")],
    source: Annotated[str | None, typer.Option(help="Folder of images to compare on; default: made ones.")] = None,
    check: Annotated[int, typer.Option("--check", min=1, help="Images to compare ONNX Runtime with torch on.")] = 16,
    sensitivity: options.Sensitivity = 0.5,
    overwrite: options.Overwrite = False,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Write a detector as one ONNX graph from pixels to decision, if ONNX Runtime agrees with torch."""
    from fmad_dist.detector.detector import Detector
    from fmad_dist.detector.onnx import check_images, check_replaced
    from fmad_dist.detector.onnx import export_onnx as job
    from fmad_dist.tracking.server import use_registry

    if model.startswith(("models:", "runs:")):
        use_registry(tracking_uri)
    detector = Detector.load(model).with_sensitivity(sensitivity)
    if not overwrite:
        check_replaced(out, detector)
    found = job(detector, out, check_images(detector, source, check))
    typer.echo(
        f"{out}: ONNX Runtime agrees with torch on {found.num_images} images, scores within {found.score:.1g}, maps "
        f"within {found.map:.1g}, same decisions ({found.num_anomalous} anomalous)"
    )
