"""`fmad config`: the resolved configuration of a run, and every key that it may have."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.base.console import print_table
from fmad_dist.cli import options

app = typer.Typer(help="The configuration of a run: resolved, or every key that it may have.", no_args_is_help=True)


@app.command()
def show(
    overrides: options.Overrides = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; default: the defaults alone.")] = None,
) -> None:
    """Print the resolved configuration as YAML: the file, the overrides, and the default of every other key."""
    from fmad_dist.config.files import dump_config

    typer.echo(dump_config(options.resolve_run(config, overrides)), nl=False)


@app.command()
def schema(
    section: Annotated[
        str | None, typer.Argument(metavar="[SECTION]", help="Only this section or key: train, train.lr, scorer.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON schema, for editors and other programs.")] = False,
) -> None:
    """List every key with its type, default and meaning; an option of one scorer names that scorer in brackets."""
    from rich.table import Table
    from rich.text import Text

    from fmad_dist.config.describe import config_keys, config_schema

    if as_json:
        typer.echo(json.dumps(config_schema(section), indent=1))
        return
    table = Table("key", box=None, pad_edge=False)
    table.add_column("type", max_width=40)
    table.add_column("default", max_width=24)
    table.add_column("meaning")
    for key in config_keys(section):
        name = f"{key.name} ({key.scorer})" if key.scorer else key.name
        table.add_row(*map(Text, (name, key.type, key.default, key.meaning)))
    print_table(table)
