"""The configuration of a benchmark run: what it takes, what it refuses, and how the runs come out of it."""

from pathlib import Path

import pytest
import yaml

from fmad_dist.base.errors import UserError
from fmad_dist.bench.config import BenchConfig, load_bench
from fmad_dist.config.run import RunConfig
from fmad_dist.training.fingerprint import training_fingerprint

ROOT = Path(__file__).parents[2]
TREE = {"benchmarks": {"one": {"manifests": ["a"]}, "two": {"manifests": ["b", "c"]}}, "run": {"train": {"steps": 7}}}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(TREE | changes))
    return path


def test_the_shipped_file_has_the_five_benchmarks() -> None:
    config = load_bench(ROOT / "configs/benchmarks/five.yaml")
    assert list(config.benchmarks) == ["mvtec_ad", "visa", "mvtec_loco", "mvtec_3d", "mpdd"]
    assert config.run_config("visa", ["x"], {}).data.manifests == ("x",)


def test_every_key_is_documented() -> None:
    fields = BenchConfig.model_fields | BenchConfig.model_fields["benchmarks"].annotation.__args__[1].model_fields
    assert [name for name, field in fields.items() if not field.description] == []


def test_runs_are_a_file_and_sections_over_it_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: x\ndata: {manifests: [q], workers: 0}\nscorer: {name: mismatch, noises: 2}\n"
    )
    path = written(tmp_path, run={"config": "base.yaml", "train": {"steps": 7, "lr": 0.5}})
    config = load_bench(path, ["run.train.steps=9", "benchmarks.two.manifests=[z]", "mode=one_model"])
    run = config.run_config("all", ["a", "z"], {})
    assert (run.train.steps, run.train.lr, run.data.workers) == (9, 0.5, 0)
    assert run.data.manifests == ("a", "z")
    assert (run.scorer.name, run.scorer.noises) == ("mismatch", 2)
    assert load_bench(path, ["run.scorer.name=inversion"]).run_config("one", ["a"], {}).scorer.name == "inversion"


def test_a_benchmark_has_sections_and_a_registered_model_of_its_own(tmp_path: Path) -> None:
    two = {"manifests": ["b"], "run": {"train": {"lr": 0.25}, "scorer": {"name": "endpoint"}}}
    config = load_bench(written(tmp_path, benchmarks=TREE["benchmarks"] | {"two": two}))
    one = config.run_config("one", ["a"], config.benchmarks["one"].run)
    other = config.run_config("two", ["b"], config.benchmarks["two"].run)
    assert (one.train.lr, other.train.lr) == (1e-3, 0.25)
    assert (one.train.steps, other.train.steps) == (7, 7)
    assert (one.tracking.model_name, other.tracking.model_name) == ("fmad-one", "fmad-two")
    assert other.scorer.name == "endpoint"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "benchmarks.one.manifest=[a]",
            "unknown key 'benchmarks.one.manifest'; did you mean 'benchmarks.one.manifests'?",
        ),
        ("mod=one_model", "unknown key 'mod'; did you mean 'mode'?"),
        ("benchmarks.one.manifests=[]", "benchmarks.one.manifests: Tuple should have at least 1 item"),
        ("benchmarks={}", "benchmarks: Dictionary should have at least 1 item"),
        ("benchmarks.a b={manifests: [x]}", "'a b' becomes a folder"),
        ("run.name=x", "run.name: the bench sets it itself; use `benchmarks`"),
        ("run.data.manifests=[x]", "run.data.manifests: the bench sets it itself"),
        ("benchmarks.one.run={output: x}", "benchmarks.one.run.output: the bench sets it itself; use `out`"),
        ("model=runs/x", "model: belongs to mode one_model"),
        ("run.config=nowhere.yaml", "nowhere.yaml: the configuration cannot be read"),
    ],
)
def test_refusals(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_bench(written(tmp_path), [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_model_has_no_settings_of_a_benchmark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks\.one: mode one_model has one model"):
        load_bench(written(tmp_path), ["mode=one_model", "benchmarks.one.model=runs/x"])


def test_the_fingerprint_is_of_what_the_weights_depend_on() -> None:
    def digest(tree: dict, **manifests: str) -> str:
        return training_fingerprint(RunConfig.model_validate(tree), manifests or {"a": "1"})

    plain = digest({})
    same = [
        {"name": "other", "output": "x", "tracking": {"mlflow": False}, "scorer": {"name": "endpoint"}},
        {"data": {"workers": 0, "cache": "x", "manifests": ["moved"]}, "features": {"cache": "y"}},
        {"train": {"checkpoint_every": 5, "hang_s": 9, "log_every": 1, "steps": 1000}},  # steps as by default
        {"train": {"zero_stage": 3, "compile": "on"}, "model": {"checkpointing": True}},
        {"protocol": {"map_size": 64}, "calibration": {"false_alarm_rate": 0.1}},
    ]
    assert {digest(tree) for tree in same} == {plain}
    other = [
        *({"train": values} for values in ({"steps": 3}, {"lr": 0.1}, {"seed": 1}, {"precision": "bf16"})),
        *({"data": {"holdout": 0.2}}, {"features": {"grid": 8}}, {"model": {"preset": "small"}}),
        {"objective": {"coupling": "ot"}},
    ]
    assert (
        len({digest(tree) for tree in other} | {plain, digest({}, a="2"), digest({}, a="1", b="1")}) == len(other) + 3
    )
