"""CSV files that list images: rows as dicts, and paths that must stay below the source folder."""

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fmad_dist.errors import UserError, first_line


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `where` names file and line for messages."""

    where: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def choice(self, column: str, choices: tuple[str, ...]) -> str:
        """Raises:
        UserError: the cell holds none of `choices`.
        """
        if self[column] not in choices:
            raise UserError(f"{self.where}: {column} is {self[column]!r}; use one of {', '.join(choices)}.")
        return self[column]


def read_table(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[Row]:
    """All rows of a CSV file with a header line, cells stripped.

    Raises:
        UserError: the file cannot be read, has no rows, lacks a required column, or has one that is neither.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns, required, optional)
            reader.fieldnames = columns
            rows = [_row(path, reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({first_line(error)}); save it as UTF-8 CSV.") from None
    if not rows:
        raise UserError(f"{path}: has no rows; list one image per line below {','.join(required)}.")
    return rows


def file_below(root: Path, name: str, where: str) -> Path:
    """The existing file `root/name`.

    Raises:
        UserError: the name is empty or leads out of `root`, or there is no such file; the sentence names `where`.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise UserError(f"{where}: {name!r} is not a path below {root}; write it relative to that folder.")
    path = root.joinpath(*parts)
    if not path.is_file():
        raise UserError(f"{where}: {path} does not exist; correct the path or restore the file.")
    return path


def _check_columns(path: Path, columns: list[str], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [name for name in required if name not in columns]
    unknown = [name for name in columns if name not in required + optional]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; the header must have {','.join(required)}.")
    if unknown:
        raise UserError(f"{path}: column {unknown[0]!r} is unknown; use {','.join(required + optional)}.")


def _row(path: Path, line: int, cells: dict[str, str | None]) -> Row:
    where = f"{path} line {line}"
    if None in cells or None in cells.values():
        raise UserError(f"{where}: another number of cells than the header; quote cells that hold a comma.")
    return Row(where, {name: (cell or "").strip() for name, cell in cells.items()})
