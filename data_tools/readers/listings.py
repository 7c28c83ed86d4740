"""Files that list images: CSV rows, typed JSON, and paths that must stay below the source folder."""

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from data_tools.readers.source_tree import composed
from fmad_dist.base.errors import Problems, UserError, first_line

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `where` names file and line for messages."""

    where: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def choice(self, column: str, choices: tuple[str, ...]) -> str:
        """The cell of a column that must hold one of `choices`, in small letters or others (UserError)."""
        value = self[column].lower()
        if value not in choices:
            raise UserError(f"{self.where}: {column} is {self[column]!r}; use one of {', '.join(choices)}.")
        return value


def read_table(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[Row]:
    """All rows of a CSV file with a header line, cells stripped; separated by commas, semicolons or tabs.

    Raises:
        UserError: the file cannot be read, has no rows, lacks a required column, or has one that is neither.
    """
    rows: list[Row] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            separator = max(",;\t", key=header.count)  # the first of those that are equal
            reader = csv.DictReader(stream, strict=True, delimiter=separator)
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns, required, optional)
            reader.fieldnames = columns
            with Problems() as problems:
                for cells in reader:
                    with problems.noted():
                        rows.append(_row(path, reader.line_num, cells))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({first_line(error)}); save it as UTF-8 CSV.") from None
    if not rows:
        raise UserError(f"{path}: has no rows; list one image per line below {','.join(required)}.")
    return rows


def read_json(path: Path, adapter: TypeAdapter[T], strict: bool = False) -> T:
    """The content of a JSON file.

    Raises:
        UserError: the file cannot be read or is of another form; the sentence names the first field that is wrong.
    """
    try:
        return adapter.validate_json(path.read_bytes(), strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        problem = f"{where} is wrong ({first['msg']})".replace("\n", " ")
        raise UserError(f"{path}: {problem}; restore the file from the download.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions.") from None


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
        for other in path.parent.glob("*"):
            if composed(other.name) == composed(path.name):
                return other
        raise UserError(f"{where}: {path} does not exist; correct the path or restore the file.")
    return path


def _check_columns(path: Path, columns: list[str], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [name for name in required if name not in columns]
    unknown = [name for name in columns if name not in required + optional]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; the header must have {','.join(required)}.")
    if unknown:
        known = ",".join(required + optional)
        raise UserError(f"{path}: column {unknown[0]!r} is unknown; remove it, or give it a name of {known}.")


def _row(path: Path, line: int, cells: dict[str, str | None]) -> Row:
    where = f"{path} line {line}"
    if None in cells or None in cells.values():
        raise UserError(f"{where}: another number of cells than the header; quote cells that hold the separator.")
    return Row(where, {name: (cell or "").strip() for name, cell in cells.items()})
