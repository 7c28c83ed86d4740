"""results.md and results.tex say what results.json says."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import METRIC_NAMES, Results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.report.result_files import results_json
from fmad_dist.report.tables import write_tables
from tests.support.toy_states import single_defects, three_classes


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
    results = compute_results(state)
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
    results = compute_results(state)
    write_tables(results, tmp_path)
    text = (tmp_path / "results.tex").read_text()
    rows = [row.removesuffix(r" \\").split(" & ") for row in text.splitlines() if row.endswith(r" \\")]
    found = {plain(cells[0]): [plain(cell) for cell in cells[2:]] for cells in rows if len(cells) == 9}
    wanted = {name: [cell.replace("–", "--") for cell in cells] for name, cells in expected_rows(results).items()}
    assert wanted.items() <= found.items()
    check_latex(text)


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tables(compute_results(three_classes()), tmp_path / name)
    for name in ("results.md", "results.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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
