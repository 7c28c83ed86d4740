"""The command that leaves torch behind."""

from typing import Annotated

import typer

from fmad_dist.cli.options import ModelOption, TrackingUri


def export_onnx(
    model: ModelOption,
    out: Annotated[str, typer.Option("--out", help="The .onnx file: a path or any fsspec URL.")],
    images: Annotated[
        str | None, typer.Option("--images", help="Folder of images to compare on; default: made ones.")
    ] = None,
    check: Annotated[int, typer.Option("--check", min=1, help="Images to compare ONNX Runtime with torch on.")] = 16,
    sensitivity: Annotated[float, typer.Option(help="Of the decisions, 0 to 1; 0.5 = as calibrated.")] = 0.5,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a detector as one ONNX graph from pixels to decision, if ONNX Runtime agrees with torch."""
    from fmad_dist.detector import Detector
    from fmad_dist.onnx.export import check_images
    from fmad_dist.onnx.export import export_onnx as run
    from fmad_dist.registry.versions import use_registry

    if model.startswith(("models:", "runs:")):
        use_registry(tracking_uri)
    detector = Detector.load(model).with_sensitivity(sensitivity)
    found = run(detector, out, check_images(detector, images, check))
    typer.echo(
        f"{out}: ONNX Runtime agrees with torch on {found.num_images} images, scores within {found.score:.1g}, maps "
        f"within {found.map:.1g}, same decisions ({found.num_anomalous} anomalous)"
    )
