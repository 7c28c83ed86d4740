"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration, see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Values that replace the file's.")
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Dry run: number of nodes.")]
GpusOption = Annotated[int, typer.Option("--gpus", min=1, help="Dry run: GPUs per node.")]
GpuOption = Annotated[str, typer.Option("--gpu", help="Dry run: H200, H100, A100, ...")]
MfuOption = Annotated[float, typer.Option("--mfu", min=0.01, max=1.0, help="Dry run: assumed share of the peak speed.")]
RestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts", min=0, help="Start again from the newest checkpoint when a process dies, so many times."
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Reader processes per rank.")]
SaveEveryOption = Annotated[
    float, typer.Option("--save-every", min=0.0, help="Seconds after which scored images are kept.")
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="torch.compile the network: for many images or costly scorers, on a GPU."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace another one that is in --out.")]
Processes = Annotated[int, typer.Option("--processes", min=0, help="Local processes; 0 = one per GPU, or 2 on a CPU.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server; default runs/mlflow.db, if it is there."
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="models:/NAME@ALIAS, a run directory or a detector folder.")]
