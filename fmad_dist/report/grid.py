"""A table of text, written as Markdown or as LaTeX with booktabs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKDOWN = re.compile(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)")  # `_` inside a word means nothing
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "×": r"$\times$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True, slots=True)
class Line:
    """A row: the name, then one cell per column; `strong` lines stand out, a `rule` is drawn above the line."""

    cells: tuple[str, ...]
    strong: bool = False
    rule: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """`header` has a title per column, the first for the names; `notes` are sentences below the table."""

    caption: str
    label: str  # LaTeX's name of the table
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def markdown(grid: Grid) -> str:
    """A pipe table under a heading, its notes as a list."""
    lines = [f"## {escape_markdown(grid.caption)}", "", _markdown_row(grid.header)]
    lines.append("|---|" + "---:|" * (len(grid.header) - 1))
    lines += [_markdown_row(line.cells, line.strong) for line in grid.lines]
    notes = [f"- {escape_markdown(note)}" for note in grid.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def latex(grid: Grid) -> str:
    r"""A `table` for a document that has \usepackage{booktabs}."""
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{escape_latex(grid.caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', grid.label)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
        r"\toprule",
        _latex_row(grid.header),
        r"\midrule",
    ]
    for number, line in enumerate(grid.lines):
        if line.rule and number:
            lines.append(r"\midrule")
        lines.append(_latex_row(line.cells, line.strong))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.notes:
        lines += ["", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [rf"{escape_latex(note)}\par" for note in grid.notes]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, r"\end{table}", ""])


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(text))


def escape_latex(text: str) -> str:
    """Text on one line that LaTeX sets as it is."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _markdown_row(cells: Sequence[str], strong: bool = False) -> str:
    escaped = [escape_markdown(cell) for cell in cells]
    return "| " + " | ".join(f"**{cell}**" if cell and strong else cell for cell in escaped) + " |"


def _latex_row(cells: Sequence[str], strong: bool = False) -> str:
    escaped = [escape_latex(cell) for cell in cells]
    return " & ".join(rf"\textbf{{{cell}}}" if cell and strong else cell for cell in escaped) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())
