"""Tables of text as Markdown and LaTeX."""

import re

from fmad_dist.report.grid import Grid, Line, escape_latex, escape_markdown, latex, markdown
from tests.report.test_tables import check_latex

HOSTILE = r"50% of $x_i^2$ & {a}~#1\b <c|d> \"e\" – ×"


def test_text_from_outside_is_escaped() -> None:
    grid = Grid(HOSTILE, HOSTILE, ("Class", HOSTILE), (Line((HOSTILE, HOSTILE), True, True),), (HOSTILE,))
    check_latex(latex(grid))
    assert escape_latex("a_b\nc") == r"a\_b c"
    row = markdown(grid).splitlines()[-3]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert escape_markdown("metal_plate _x_ <b>") == r"metal_plate \_x\_ \<b\>"
