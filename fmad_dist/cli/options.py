"""The words of the command line: options that several commands take, each with one name and one meaning.

| word | meaning |
|---|---|
| --config FILE, section.key=value | the configuration of a run, and values that replace the file's |
| --data, --source | converted datasets; raw pictures, as files or in tars |
| --run, --model | a training run; a detector, wherever it is |
| --out, --overwrite | where the results go; another result that is there may be replaced |
| --processes, --workers | ranks on this machine; processes that read beside each of them |
| --tracking-uri, --endpoint-url | the MLflow server; the S3 server |

What a command only looks at or puts in order is its argument: `fmad view RESULTS`, `fmad data lint DATA`. A count of 0
means none; what is chosen automatically is chosen by leaving the option out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fmad_dist.config.run import RunConfig
    from fmad_dist.detector.files import DetectorSpec


def _use_endpoint(url: str | None) -> str | None:
    if url is not None:
        from fmad_dist.storage import use_endpoint

        use_endpoint(url)
    return url


Config = Annotated[Path, typer.Option("--config", help="YAML file, or a configuration that is shipped, such as demo.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Values that replace the file's.")
]
Data = Annotated[list[str], typer.Option("--data", help="URL of a converted dataset; repeatable.")]
RunData = Annotated[
    list[str] | None, typer.Option("--data", help="URL of a converted dataset; replaces data.manifests; repeatable.")
]
Run = Annotated[str, typer.Option("--run", help="Run directory, or the folder or URL of its checkpoints.")]
Model = Annotated[str, typer.Option("--model", help="models:/NAME@ALIAS, a run directory or a detector folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another one that is in --out.")]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Ranks on this machine; default one per GPU, or 2 on a CPU.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read beside each rank; 0 = none.")]
MaxRestarts = Annotated[int, typer.Option("--max-restarts", min=0, help="Restarts when a rank dies; 0 = none.")]
SaveEvery = Annotated[float, typer.Option("--save-every", min=0.0, help="Seconds after which scored images are kept.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the network, for much work on a GPU.")]
Sensitivity = Annotated[
    float, typer.Option("--sensitivity", min=0.0, max=1.0, help="Higher finds more and errs more; 0.5 = as calibrated.")
]
EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", callback=_use_endpoint, help="S3 server; default AWS_ENDPOINT_URL or the profile."),
]
RunEndpointUrl = Annotated[str | None, typer.Option("--endpoint-url", help="S3 server; replaces data.endpoint_url.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server; default runs/mlflow.db if there."
    ),
]
RunTrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; replaces tracking.uri.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Planned: number of nodes.")]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="Planned: GPUs per node, one rank each.")]
Gpu = Annotated[str, typer.Option("--gpu", help="Planned: H200, H100, A100, ...")]
Mfu = Annotated[float, typer.Option("--mfu", min=0.01, max=1.0, help="Planned: assumed share of the peak speed.")]


def resolve_run(
    config: Path | None,
    overrides: list[str] | None,
    data: list[str] | None = None,
    endpoint_url: str | None = None,
    tracking_uri: str | None = None,
) -> "RunConfig":
    """The configuration of a run: its file (None = the defaults), over it the options, over them the overrides. Storage
    requests of this process go to the endpoint that it names.

    Raises:
        UserError: the file cannot be read, or a key or value is not valid.
    """
    from fmad_dist.config.files import override_all, parse_config, read_tree
    from fmad_dist.storage import use_endpoint

    given = {"data.manifests": data, "data.endpoint_url": endpoint_url, "tracking.uri": tracking_uri}
    values = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    tree = {} if config is None else read_tree(config)
    override_all(tree, [*values, *(overrides or [])])
    resolved = parse_config(tree, source="the command line" if config is None else str(config))
    use_endpoint(resolved.data.endpoint_url)
    return resolved


@dataclass(frozen=True)
class FoundModel:
    """A detector that a `--model` means: its local folder, what reports call it, and everything but its tensors."""

    folder: str
    name: str
    spec: "DetectorSpec"


def find_model(model: str, tracking_uri: str | None) -> FoundModel:
    """The detector behind a `--model`, downloaded if it is at a URL or in the registry.

    Raises:
        UserError: nothing is there, it cannot be read, or it is not what was registered.
    """
    from fmad_dist.detector.files import locate_detector, read_spec
    from fmad_dist.tracking.server import named_version, use_registry

    if model.startswith(("models:", "runs:")):
        use_registry(tracking_uri)
    folder = locate_detector(model)
    return FoundModel(str(folder), named_version(model), read_spec(folder))
