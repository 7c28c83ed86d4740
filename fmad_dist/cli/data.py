"""`fmad data`: convert image trees to shards, and check or look at the result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmad_dist.cli import options

if TYPE_CHECKING:
    from fmad_dist.stream.manifest import Manifest

app = typer.Typer(
    help="Convert image trees to tar shards with a manifest, and check or look at the result.", no_args_is_help=True
)
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="Folder or URL of a converted dataset.")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Its name, the first part of every sample id.")]
LayoutOption = Annotated[str, typer.Option("--layout", help="mvtec, visa, loco, mvtec3d, mpdd, realiad or folder.")]
NewFolderOption = Annotated[Path, typer.Option("--out", help="New folder for the images.")]


@app.command()
def convert(
    dataset: DatasetOption,
    source: Annotated[Path, typer.Option("--source", help="Folder with the unpacked images.")],
    out: Annotated[str, typer.Option("--out", help="Where to write: a path or any URL such as s3://bucket/name.")],
    layout: LayoutOption = "mvtec",
    size: Annotated[int, typer.Option(help="Side length of the stored images and masks, in pixels.")] = 256,
    rendition: Annotated[str, typer.Option(help="resized, original (the published bytes) or both.")] = "resized",
    shard_mb: Annotated[float, typer.Option(help="Target size of one shard, in MiB.")] = 256,
    part: Annotated[str | None, typer.Option(help="i/n: one part of a job array; then `fmad data seal`.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence; default from SOURCE.txt or license.txt.")] = None,
    source_note: Annotated[str | None, typer.Option(help="Origin of the images; default from SOURCE.txt.")] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that decode and resize; 0 = none, default one per core."),
    ] = None,
    overwrite: options.Overwrite = False,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Convert a folder of images and masks to shards. Running it again goes on where it stopped, or writes nothing."""
    from data_tools.conversion.array_parts import WHOLE, Part
    from data_tools.conversion.convert import Conversion
    from data_tools.conversion.convert import convert as job
    from data_tools.dataset_tables import conversion_lines, deviations_table
    from fmad_dist.base.console import print_table

    settings = Conversion(
        layout=layout,
        dataset=dataset,
        source=source,
        out=out,
        size=size,
        shard_mb=shard_mb,
        num_workers=workers,
        licence=licence,
        note=source_note,
        overwrite=overwrite,
        rendition=rendition,  # type: ignore[arg-type]  # checked there
        part=Part.parse(part) if part else WHOLE,
    )
    report = job(settings, show_progress=True)
    if report.deviations:
        print_table(deviations_table(report.deviations))
    for line in conversion_lines(settings, report):
        typer.echo(line)


@app.command()
def seal(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The --out of all parts.")],
    overwrite: options.Overwrite = False,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Make one dataset of the parts that `fmad data convert --part i/n` left at a URL."""
    from data_tools.conversion.sealing import seal_parts

    manifest, remarks = seal_parts(data, overwrite)
    typer.echo(f"sealed {_content(manifest, 'shard')} at {data}, digest {manifest.digest[:16]}")
    for line in remarks.lines():
        typer.echo(line)


@app.command()
def index(
    source: Annotated[str, typer.Option("--source", help="URL of a folder of .tar files that fmad did not write.")],
    dataset: DatasetOption,
    split: Annotated[str | None, typer.Option(help="train, val or test; default what samples or tars say.")] = None,
    class_name: Annotated[str, typer.Option("--class", help="Class of samples that name none, in no folder.")] = "all",
    licence: Annotated[str, typer.Option(help="Licence of the images.")] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Index again, or replace another manifest.")] = False,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Make WebDataset tars trainable in place: an index and a manifest beside them. The tars are not changed."""
    from data_tools.foreign_index import Defaults, index_tars
    from data_tools.remarks import Remarks
    from fmad_dist.base.console import Progress
    from fmad_dist.storage import Store

    defaults = Defaults(dataset, split, class_name, licence)
    num_tars = sum(name.endswith(".tar") for name in Store(source).list())
    with Progress("index tars", num_tars, shown=True) as progress:
        remarks = Remarks()
        manifest, written = index_tars(source, defaults, overwrite, lambda num_bytes: progress.advance(1), remarks)
    what = _content(manifest, "tar")
    if written:
        typer.echo(f"indexed {what} at {source}, digest {manifest.digest[:16]}")
        for line in remarks.lines():
            typer.echo(line)
    else:
        typer.echo(
            f"up to date: {source} holds {what}; only their sizes were compared, `fmad data lint` reads everything"
        )


@app.command()
def gc(
    data: DataArgument,
    older_than: Annotated[str, typer.Option(help="Keep what was named or written since: 90s, 30m, 24h, 7d.")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Remove what replaced datasets and unfinished conversions left at a URL; never what the manifest names."""
    from data_tools.garbage import collect, parse_age

    found = collect(data, parse_age(older_than), dry_run)
    for entry in found.removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {entry.name} ({entry.num_bytes:,} bytes)")
    typer.echo(
        f"{len(found.removed)} files of {found.num_bytes:,} bytes {'to remove' if dry_run else 'removed'}, "
        f"{found.kept} younger ones kept, {found.num_uploads} unfinished uploads given up, "
        f"{found.foreign} files that are not ours left alone"
    )


@app.command()
def info(data: DataArgument, endpoint_url: options.EndpointUrl = None) -> None:
    """Show classes, splits, defects, licence, size and digest of a converted dataset."""
    from data_tools.dataset_tables import manifest_overview
    from fmad_dist.base.console import print_table
    from fmad_dist.stream.manifest import load_manifest

    print_table(manifest_overview(data, load_manifest(data)))


@app.command()
def lint(data: DataArgument, endpoint_url: options.EndpointUrl = None) -> None:
    """Read every byte of a converted dataset and list all that is wrong. Exit code 1 if there are errors."""
    from data_tools.dataset_tables import findings_table
    from data_tools.lint import lint as job
    from fmad_dist.base.console import print_table

    report = job(data)
    if report.findings:
        print_table(findings_table(report))
    verdict = "DAMAGED" if report.num_errors else "clean"
    typer.echo(
        f"{verdict}: {report.num_samples} samples in {report.num_shards} shards, "
        f"{report.num_errors} errors, {report.num_warnings} warnings"
    )
    if report.num_errors:
        raise typer.Exit(1)


@app.command()
def preview(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")],
    class_name: Annotated[str | None, typer.Option("--class", help="Only this class.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Images per row.")] = 6,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Draw a contact sheet: per class a row of normal and a row of anomalous images, masks outlined."""
    from data_tools.preview import contact_sheet
    from fmad_dist.images.codec import png
    from fmad_dist.storage import Store

    sheet = contact_sheet(data, class_name, num)
    Store(out.parent).write(out.name, png(sheet))
    typer.echo(f"wrote {out} ({sheet.width}x{sheet.height})")


@app.command()
def plan(
    overrides: options.Overrides = None,
    config: Annotated[Path | None, typer.Option("--config", help="Configuration of the run to plan.")] = None,
    data: options.RunData = None,
    nodes: options.Nodes = 1,
    gpus: options.Gpus = 8,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per rank and step; default as configured.")] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed of the order; by default the configuration's, or 0.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write one line per rank to this CSV file.")] = None,
    endpoint_url: options.RunEndpointUrl = None,
) -> None:
    """Show what every rank will read in an epoch: mix, shards, bytes, cache. Reads manifests only."""
    from data_tools.plan_tables import plan_csv, plan_overview
    from fmad_dist.base.console import print_table
    from fmad_dist.storage import Store
    from fmad_dist.stream.epoch_reads import epoch_reads
    from fmad_dist.stream.training_stream import open_stream

    resolved = options.resolve_run(config, overrides, data, endpoint_url)
    stream = open_stream(resolved.data, resolved.train.seed if seed is None else seed)
    as_configured = config is not None and batch is None
    total = resolved.train.global_batch if as_configured else (batch or 16) * nodes * gpus
    micro = resolved.train.micro_batch if as_configured else None
    found = epoch_reads(stream, nodes=nodes, gpus=gpus, global_batch=total, micro_batch=micro, epoch=epoch)
    print_table(plan_overview(found))
    if out is not None:
        Store(out.parent).write(out.name, plan_csv(found).encode())
        typer.echo(f"wrote {out}")


@app.command()
def demo(
    out: NewFolderOption,
    seed: Annotated[int, typer.Option(help="Other seeds give other specimens of the same products.")] = 0,
) -> None:
    """Render the demo benchmark: five products with defects and exact masks, in the mvtec layout."""
    from data_tools.demo_products import make_demo_tree

    make_demo_tree(out, seed=seed)
    typer.echo(f"wrote the demo images to {out}; convert them with: fmad data convert --dataset demo --source {out}")


@app.command()
def fixtures(layout: LayoutOption, out: NewFolderOption) -> None:
    """Write small trees in exactly the official layout of a benchmark, and expected.json with what they hold."""
    import shlex

    from data_tools.fixtures import EXPECTED_NAME, write_fixture

    trees = write_fixture(layout, out)
    typer.echo(f"wrote {out / EXPECTED_NAME} and {len(trees)} trees; convert them with:")
    for name, folder in trees.items():
        source = shlex.quote(str(folder))
        typer.echo(f"  fmad data convert --layout {layout} --dataset {layout}_{name} --source {source} --out URL")


def _content(manifest: "Manifest", what: str) -> str:
    """`8 images of 2 classes in 1 shard`; `what` is a shard or a tar."""
    from fmad_dist.base.console import counted

    images = counted(manifest.index.num_samples, "image", "images")
    classes = counted(len(manifest.classes), "class", "classes")
    return f"{images} of {classes} in {counted(len(manifest.shards), what, f'{what}s')}"
