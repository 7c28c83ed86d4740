"""results.md and results.tex say what results.json says."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from toy_states import single_defects, three_classes

from fmad_dist.evaluation.report.benchmark import compared_rows, write_benchmark
from fmad_dist.evaluation.report.grid import Grid, Line, escape_latex, escape_markdown, latex, markdown
from fmad_dist.evaluation.report.published import ComparedRow
from fmad_dist.evaluation.report.tables import write_tables
from fmad_dist.evaluation.results import METRIC_NAMES, Results, results_json
from fmad_dist.evaluation.state import EvaluationState

HOSTILE = r"50% of $x_i^2$ & {a}~#1\b <c|d> \"e\" – ×"
PEER = ComparedRow("bank_of_50%", "peer", r"x_i & \y", {"image_auroc": 0.5})


def shown(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def expected_rows(results: Results) -> dict[str, list[str]]:
    """Name -> metrics as text, from the content of results.json."""
    body = json.loads(json.dumps(results_json(results)))
    parts = {"Mean over classes": body["mean"]} | (body["datasets"] if len(body["datasets"]) > 1 else {})
    parts |= {name.split("/", 1)[1]: values for name, values in body["classes"].items()}
    return {name: [shown(values[metric]) for metric in METRIC_NAMES] for name, values in parts.items()}


@pytest.fixture(params=[three_classes, single_defects])
def state(request: pytest.FixtureRequest) -> EvaluationState:
    return request.param()


def test_markdown_has_every_metric_of_every_class(state: EvaluationState, tmp_path: Path) -> None:
    results = state.compute()
    write_tables(results, tmp_path)
    text = (tmp_path / "results.md").read_text()
    summary = text[: text.index("95 % intervals")]
    found = {}
    for line in summary.splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(METRIC_NAMES):
            found[cells[0]] = cells[2:]
    assert expected_rows(results).items() <= found.items()
    low, high = results.mean.intervals["image_auroc"]
    assert f"**{shown(low)} to {shown(high)}**" in text


def test_latex_has_the_same_numbers(state: EvaluationState, tmp_path: Path) -> None:
    results = state.compute()
    write_tables(results, tmp_path)
    text = (tmp_path / "results.tex").read_text()
    rows = [row.removesuffix(r" \\").split(" & ") for row in text.splitlines() if row.endswith(r" \\")]
    found = {plain(cells[0]): [plain(cell) for cell in cells[2:]] for cells in rows if len(cells) == 9}
    wanted = {name: [cell.replace("–", "--") for cell in cells] for name, cells in expected_rows(results).items()}
    assert wanted.items() <= found.items()
    check_latex(text)


def test_benchmark_files(tmp_path: Path) -> None:
    measured = compared_rows(three_classes("mvtec_ad").compute(), {"mvtec_ad": [PEER]})
    write_benchmark(measured, tmp_path)
    tex, md = ((tmp_path / f"benchmark.{kind}").read_text() for kind in ("tex", "md"))
    check_latex(tex)
    assert r"bank\_of\_50\% (2) & 50.0 & -- &" in tex
    assert "| bank_of_50% (2) | 50.0 | – |" in md
    for name in ("HVQ-Trans", "Dinomaly-B", "choose the best epoch on the test set"):
        assert name in tex
        assert name in md
    write_benchmark({}, tmp_path, "none")
    assert (tmp_path / "none.md").read_text() == ""


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tables(three_classes().compute(), tmp_path / name)
    for name in ("results.md", "results.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_text_from_outside_is_escaped() -> None:
    grid = Grid(HOSTILE, HOSTILE, ("Class", HOSTILE), (Line((HOSTILE, HOSTILE), True, True),), (HOSTILE,))
    check_latex(latex(grid))
    assert escape_latex("a_b\nc") == r"a\_b c"
    row = markdown(grid).splitlines()[-3]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert escape_markdown("metal_plate _x_ <b>") == r"metal_plate \_x\_ \<b\>"


def plain(cell: str) -> str:
    return re.sub(r"\\textbf\{(.*)\}", r"\1", cell).replace("\\", "")


def check_latex(text: str) -> None:
    """Every special character is escaped, groups and environments close, rows have as many cells as the table has
    columns; and it compiles, where there is a compiler."""
    bare = re.sub(r"\$\\times\$|\\[&%$#_{}]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    assert not re.search(r"[~^\"<>|#%$]", bare)
    assert "_" not in bare
    assert bare.count("{") == bare.count("}")
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or opened.pop() == name
        opened += [name] if kind == "begin" else []
    assert opened == []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    if shutil.which("pdflatex") and subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        compile_latex(text)


def compile_latex(text: str) -> None:
    packages = r"\usepackage{booktabs}\usepackage[T1]{fontenc}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}" + "\n%s\n" + r"\end{document}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tables.tex").write_text(document.replace("%s", text))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
