"""`fmad data`: convert image trees to shards, and look at the result."""

from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli_stream import index, plan
from fmad_dist.wording import counted

app = typer.Typer(help="Convert image trees to tar shards with a manifest, and check or look at the result.")


@app.callback()
def storage(
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint; by default AWS_ENDPOINT_URL or the profile's.")
    ] = None,
) -> None:
    """Convert image trees to tar shards with a manifest, and check or look at the result."""
    from fmad_dist.storage import use_endpoint

    use_endpoint(endpoint_url)


app.command()(plan)
app.command()(index)

UrlArgument = Annotated[str, typer.Argument(help="Folder of a converted dataset: a path, s3://..., memory://...")]


@app.command()
def convert(
    dataset: Annotated[str, typer.Option(help="Name of the dataset; the first part of every sample id.")],
    source: Annotated[Path, typer.Option(help="Folder with the unpacked images.")],
    out: Annotated[str, typer.Option(help="Where to write: a path or any fsspec URL such as s3://bucket/name.")],
    layout: Annotated[str, typer.Option(help="mvtec, visa, loco, mvtec3d, mpdd, realiad or folder.")] = "mvtec",
    size: Annotated[int, typer.Option(help="Side length of the stored images and masks, in pixels.")] = 256,
    rendition: Annotated[
        str, typer.Option(help="resized, original (the published bytes, resized while reading) or both.")
    ] = "resized",
    shard_mb: Annotated[float, typer.Option(help="Target size of one shard, in MiB.")] = 256,
    workers: Annotated[int, typer.Option(help="Processes that decode and resize; 0 means one per core.")] = 0,
    part: Annotated[
        str | None, typer.Option(help="i/n: only this part, as one job of an array; `fmad data seal` joins them.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the images; by default read from SOURCE.txt or license.txt.")
    ] = None,
    source_note: Annotated[
        str | None, typer.Option(help="Where the images come from; by default read from SOURCE.txt.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Convert even if up to date or if another dataset lives at --out.")
    ] = False,
) -> None:
    """Convert a folder of images and masks to shards. Running it again goes on where it stopped, or writes nothing."""
    from data_tools.parts import WHOLE, Part
    from data_tools.sharder import Conversion
    from data_tools.sharder import convert as run

    options = Conversion(
        layout,
        dataset,
        source,
        out,
        size,
        shard_mb,
        workers,
        licence,
        source_note,
        overwrite,
        rendition,  # type: ignore[arg-type]  # checked there
        Part.parse(part) if part else WHOLE,
    )
    report = run(options, show_progress=True)
    if report.deviations:
        from rich.console import Console

        from data_tools.overview import deviations_table

        Console().print(deviations_table(report.deviations))
    from data_tools.overview import conversion_lines

    for line in conversion_lines(options, report):
        typer.echo(line)


@app.command()
def seal(
    url: Annotated[str, typer.Argument(help="The --out of all parts.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another dataset that lives at the URL.")
    ] = False,
) -> None:
    """Make one dataset of the parts that `fmad data convert --part i/n` left at a URL."""
    from data_tools.sealing import seal_parts

    manifest, num_pooled = seal_parts(url, overwrite)
    images = counted(manifest.index.num_samples, "image", "images")
    classes = counted(len(manifest.classes), "class", "classes")
    shards = counted(len(manifest.shards), "shard", "shards")
    typer.echo(f"sealed {images} of {classes} in {shards} at {url}, digest {manifest.digest[:16]}")
    if num_pooled:
        typer.echo(f"{num_pooled} masks were max-pooled, because nearest resizing would have lost them")


@app.command()
def gc(
    url: UrlArgument,
    older_than: Annotated[str, typer.Option(help="Keep what is younger: 90s, 30m, 24h or 7d.")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what replaced datasets and unfinished conversions left at a URL; never what the manifest names."""
    from data_tools.garbage import collect
    from data_tools.overview import parse_age

    found = collect(url, parse_age(older_than), dry_run)
    for entry in found.removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {entry.name} ({entry.num_bytes:,} bytes)")
    typer.echo(
        f"{len(found.removed)} files of {found.num_bytes:,} bytes {'to remove' if dry_run else 'removed'}, "
        f"{found.kept} younger ones kept, {found.num_uploads} unfinished uploads given up, "
        f"{found.foreign} files that are not ours left alone"
    )


@app.command()
def info(url: UrlArgument) -> None:
    """Show classes, splits, defects, licence, size and digest of a converted dataset."""
    from rich.console import Console

    from data_tools.overview import manifest_overview
    from fmad_dist.stream.manifest import load_manifest

    Console().print(manifest_overview(url, load_manifest(url)))


@app.command()
def lint(url: UrlArgument) -> None:
    """Read every byte of a converted dataset and list all that is wrong. Exit code 1 if there are errors."""
    from rich.console import Console

    from data_tools.lint import lint as run
    from data_tools.overview import findings_table

    report = run(url)
    if report.findings:
        Console().print(findings_table(report))
    verdict = "DAMAGED" if report.num_errors else "clean"
    typer.echo(
        f"{verdict}: {report.num_samples} samples in {report.num_shards} shards, "
        f"{report.num_errors} errors, {report.num_warnings} warnings"
    )
    if report.num_errors:
        raise typer.Exit(1)


@app.command()
def preview(
    url: UrlArgument,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    class_name: Annotated[str | None, typer.Option("--class", help="Only this class.")] = None,
    num: Annotated[int, typer.Option(help="Images per row.")] = 6,
) -> None:
    """Draw a contact sheet: per class a row of normal and a row of anomalous images, masks outlined."""
    from data_tools.preview import contact_sheet
    from data_tools.rendition import png_bytes
    from fmad_dist.storage import Store

    sheet = contact_sheet(url, class_name, num)
    Store(out.parent).write(out.name, png_bytes(sheet))
    typer.echo(f"wrote {out} ({sheet.width}x{sheet.height})")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="New folder for the images.")],
    seed: Annotated[int, typer.Option(help="Other seeds give other specimens of the same products.")] = 0,
) -> None:
    """Render the demo benchmark: five products with defects and exact masks, in the mvtec layout."""
    from data_tools.demo_products import make_demo_tree

    make_demo_tree(out, seed=seed)
    typer.echo(f"wrote the demo images to {out}; convert them with: fmad data convert --dataset demo --source {out}")


@app.command()
def fixtures(
    layout: Annotated[str, typer.Option(help="mvtec, visa, loco, mvtec3d, mpdd, realiad or folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the images.")],
) -> None:
    """Write small trees in exactly the official layout of a benchmark, and expected.json with what they hold."""
    import shlex

    from data_tools.fixtures import EXPECTED_NAME, write_fixture

    trees = write_fixture(layout, out)
    typer.echo(f"wrote {out / EXPECTED_NAME} and {len(trees)} trees; convert them with:")
    for name, folder in trees.items():
        source = shlex.quote(str(folder))
        typer.echo(f"  fmad data convert --layout {layout} --dataset {layout}_{name} --source {source} --out URL")
