"""`fmad data plan` and `fmad data index`: what training will read, and tars that others wrote."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]... | [section.key=value]...", help="Converted datasets; overrides with --config."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration of the run to plan.")] = None,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="Processes per machine.")] = 8,
    batch: Annotated[
        int | None, typer.Option(help="Images per process and step; by default the configuration's, or 16.")
    ] = None,
    epoch: Annotated[int, typer.Option(help="Which epoch.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed of the order; by default the configuration's, or 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write one line per rank to this CSV file.")] = None,
) -> None:
    """Show what every rank will read in an epoch: mix, shards, bytes, cache. Reads manifests only."""
    from rich.console import Console

    from data_tools.plan_overview import plan_csv, plan_overview
    from fmad_dist.config import RunConfig
    from fmad_dist.config_files import load_config
    from fmad_dist.storage import Store, use_endpoint
    from fmad_dist.stream.dry_run import dry_run
    from fmad_dist.stream.training_stream import open_stream

    if config is None:
        resolved = RunConfig.model_validate({"data": {"manifests": words or []}})
    else:
        resolved = load_config(config, words or [])
    use_endpoint(resolved.data.endpoint_url)
    stream = open_stream(resolved.data, resolved.train.seed if seed is None else seed)
    total = resolved.train.global_batch if config and batch is None else (batch or 16) * nodes * gpus
    micro = resolved.train.micro_batch if config and batch is None else None
    found = dry_run(stream, nodes, gpus, total, micro, epoch)
    Console().print(plan_overview(found))
    if out is not None:
        Store(out.parent).write(out.name, plan_csv(found).encode())
        typer.echo(f"wrote {out}")


def index(
    url: Annotated[str, typer.Argument(help="Folder of .tar files that fmad did not write.")],
    dataset: Annotated[str, typer.Option(help="Name of the dataset; the first part of every sample id.")],
    split: Annotated[
        str | None, typer.Option(help="train, val or test; by default what the samples or the tar's name say.")
    ] = None,
    class_name: Annotated[
        str, typer.Option("--class", help="Class of samples that do not say theirs and lie in no folder.")
    ] = "all",
    licence: Annotated[str, typer.Option(help="Licence of the images.")] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Index again, or replace another manifest.")] = False,
) -> None:
    """Make WebDataset tars trainable in place: an index and a manifest beside them. The tars are not changed."""
    from data_tools.foreign import Defaults, index_tars
    from fmad_dist.progress import Progress
    from fmad_dist.storage import Store
    from fmad_dist.wording import counted

    defaults = Defaults(dataset, split, class_name, licence)
    num_tars = sum(name.endswith(".tar") for name in Store(url).list())
    with Progress("index tars", num_tars, shown=True) as progress:
        manifest, written = index_tars(url, defaults, overwrite, lambda num_bytes: progress.advance(1))
    images = counted(manifest.index.num_samples, "image", "images")
    classes = counted(len(manifest.classes), "class", "classes")
    what = f"{images} of {classes} in {counted(len(manifest.shards), 'tar', 'tars')}"
    if written:
        typer.echo(f"indexed {what} at {url}, digest {manifest.digest[:16]}")
    else:
        typer.echo(f"up to date: {url} holds {what}; only their sizes were compared, `fmad data lint` reads everything")
