"""`fmad report`: an evaluation's report again, from what it has kept."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(help="Folder of a finished evaluation: its --out.")],
) -> None:
    """Write results.json, the tables and report.html of an evaluation again, as this version makes them; nothing is
    scored."""
    from fmad_dist.evaluation.report import report_again
    from fmad_dist.report.result_files import print_summary

    report_again(results)
    print_summary(results)
