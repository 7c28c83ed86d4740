"""Which scorers there are, whose module is imported, and what is said of those that are not there or broken."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from fmad_dist.base.errors import UserError
from fmad_dist.config import scorers
from fmad_dist.config.files import dump_config, parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.config.scorers import default_config, scorer_config, scorer_names
from fmad_dist.scoring.density import DensityConfig
from fmad_dist.scoring.deviation import DeviationConfig
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.fusion import FusionConfig
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.scoring.reconstruction import ReconstructionConfig
from tests.support.packages import install

ROOT = Path(scorers.__file__).parents[1]
OWN = ["ddim", "density", "deviation", "endpoint", "fusion", "inversion", "mismatch", "reconstruction", "residual"]
WITHOUT_NAMES = (  # what knows no scorer by its name or class
    *("config/files.py", "config/run.py", "scoring/maps.py", "comparison/choice.py", "training/preflight.py"),
    *("detector/detector.py", "detector/files.py", "detector/fit.py", "detector/onnx.py"),
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages are installed for this test alone."""
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (scorers._registered, scorers.scorer_config):
        cached.cache_clear()
    yield tmp_path
    for cached in (scorers._registered, scorers.scorer_config):
        cached.cache_clear()


def refusal(scorer: object) -> str:
    with pytest.raises(UserError) as caught:
        parse_config({"scorer": scorer}, source="run.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_scorer_is_registered_under_its_name() -> None:
    assert scorer_names() == OWN
    assert [default_config(name).name for name in scorer_names()] == OWN


@pytest.mark.parametrize("file", WITHOUT_NAMES)
def test_only_a_scorer_knows_itself(file: str) -> None:
    """No other code imports a scorer, asks for its class or compares its name."""
    modules = {scorer_config(name).__module__ for name in OWN}
    trees = [ast.parse(Path(str(sys.modules[module].__file__)).read_text()) for module in modules]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    classes |= {"Scorer", "VectorScorer", "ScoringMethod", "VectorMethod", "ScorerConfig"}
    assert len(classes) > 23
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        assert not isinstance(node, ast.ImportFrom) or node.module not in modules, ast.unparse(node)
        inside = list(ast.walk(node))
        if isinstance(node, ast.Compare | ast.match_case):
            assert not {one.value for one in inside if isinstance(one, ast.Constant)} & {*OWN}, ast.unparse(node)
        if isinstance(node, ast.match_case) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"):
            assert not {one.id for one in inside if isinstance(one, ast.Name)} & classes, ast.unparse(node)


def test_only_the_scorer_that_is_named_is_imported() -> None:
    """In a process of its own; the default scorer has another one as its part."""
    code = (
        "import sys; from fmad_dist.config.files import parse_config; assert 'torch' not in sys.modules; "
        "parse_config({'scorer': {'name': 'residual'}}, 'x'); "
        "print([m for m in sys.modules if m in ('fmad_dist.scoring.residual', 'fmad_dist.scoring.density')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fmad_dist.scoring.residual']"


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ({"name": "magic"}, f"run.yaml: scorer.name: unknown scorer 'magic'; choose one of {', '.join(OWN)}."),
        ({"name": ["a"]}, "scorer.name: unknown scorer ['a']; choose one of"),
        (7, "scorer: Input should be a valid dictionary or instance of ScorerConfig, got 7."),
        ({"step": 5, "name": "inversion"}, "unknown key 'scorer.step'; did you mean 'scorer.steps'?"),
        ({"name": "density", "zzz": 5}, "valid keys: chunk, mask_stride, name, probes, solver, steps, trace."),
        ({"part": {"name": "inversion", "stpes": 5}}, "'scorer.part.stpes'; did you mean 'scorer.part.steps'?"),
        ({"part": {"steps": 0}}, "scorer.part.steps: Input should be greater than or equal to 1, got 0."),
        (
            {"part": {"name": "density"}},
            "scorer.part.name: scorer 'density' cannot be used here; choose one of ddim,",
        ),
        (
            {"part": {"name": "fusion"}},
            "cannot be used here; choose one of ddim, endpoint, inversion, residual.",
        ),
        ({"name": "fusion", "parts": [{"name": "inversion"}]}, "scorer.parts: Tuple should have at least 2 items"),
        (
            {"name": "fusion", "parts": [{"name": "inversion"}, {"name": "deviation"}]},
            "scorer.parts.1.name: scorer 'deviation' cannot be used here; choose one of ddim, density, endpoint, inv",
        ),
        (
            {"name": "fusion", "parts": [{"steps": 3}, {"name": "inversion"}]},
            "scorer.parts.0.name: unknown scorer None;",
        ),
    ],
)
def test_what_is_wrong_with_a_scorer_is_one_sentence(scorer: object, words: str) -> None:
    assert words in refusal(scorer)


def test_parts_are_checked_in_python_too() -> None:
    for wrong in ({"part": DensityConfig()}, {"part": DeviationConfig()}):
        with pytest.raises(ValidationError, match="cannot be used here"):
            DeviationConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="cannot be used here"):
        FusionConfig(parts=(InversionConfig(), FusionConfig()))


def test_names_have_defaults_and_options_survive_files() -> None:
    assert parse_config({"scorer": {"memory": 8}}, "x").scorer == DeviationConfig(memory=8)
    assert parse_config({"scorer": {"part": {"steps": 7}}}, "x").scorer == DeviationConfig(
        part=InversionConfig(steps=7)
    )
    for scorer in (FusionConfig(parts=(DensityConfig(probes=3), EndpointConfig())), ReconstructionConfig(tau=0.25)):
        config = RunConfig(scorer=scorer)
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert "probes: 3" in dump_config(config) or "tau: 0.25" in dump_config(config)


def test_titles_name_what_differs() -> None:
    assert DeviationConfig(part=EndpointConfig(steps=2), memory=0).title == "deviation part=[endpoint steps=2] memory=0"
    assert FusionConfig(parts=(InversionConfig(solver="heun"), EndpointConfig())).title == (
        "fusion parts=[inversion solver=heun + endpoint]"
    )
    assert FusionConfig().title == "fusion"


def test_a_scorer_of_another_package(packages: Path) -> None:
    code = "from fmad_dist.config.scorers import ScorerConfig\nclass Mine(ScorerConfig):\n    name: str = 'mine'\n"
    install(packages, "of_mine", code, {"fmad.scorers": {"mine": "of_mine:Mine"}})
    assert scorer_names() == sorted([*OWN, "mine"])
    assert parse_config({"scorer": {"name": "mine"}}, "x").scorer.title == "mine"


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        ("import nothing_of_that_name", "mine", "cannot be imported (No module named 'nothing_of_that_name')"),
        ("", "mine", "of_mine:Mine cannot be imported (module 'of_mine' has no attribute 'Mine')"),
        ("class Mine: ...", "mine", "of_mine:Mine is no ScorerConfig whose `name` is 'mine' by default."),
        ("", "inversion", "registered as "),
    ],
)
def test_what_is_wrong_with_a_package_is_one_sentence(packages: Path, code: str, name: str, words: str) -> None:
    """A second scorer of a name is refused: the scores of a detector must not depend on what else is installed."""
    install(packages, "of_mine", code, {"fmad.scorers": {name: "of_mine:Mine"}})
    sys.modules.pop("of_mine", None)
    assert words in refusal({"name": name})


def test_an_installation_without_scorers_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an editable one is that was made before this version."""
    scorers._registered.cache_clear()
    monkeypatch.setattr(scorers, "entry_points", lambda group: [])
    with pytest.raises(UserError, match=r"fmad-dist is not installed, .* install it again"):
        scorer_names()
