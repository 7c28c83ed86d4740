"""The figures of the README are those of the benchmarks' results."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_has_the_figures_of_the_benchmarks() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks/headline.py"))
    text = (ROOT / "README.md").read_text()
    assert script["with_table"](text, script["table"]()) == text
    assert script["with_table"](text, "another table") != text
