import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fmad_dist.base.errors import UserError
from fmad_dist.bench.config import load_bench
from fmad_dist.config.files import (
    FOLDER,
    dump_config,
    find_config,
    flat_config,
    load_config,
    parse_config,
    shipped_names,
)
from fmad_dist.config.run import RunConfig
from fmad_dist.config.scorers import scorer_config, scorer_names
from fmad_dist.registry.gate import load_gate
from fmad_dist.scoring.deviation import DeviationConfig
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.inversion import InversionConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "registry")
CONFIGS = [file for file in FILES if file.name != "five.yaml"]  # the others are of runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text("name: mine\ntrain:\n  steps: 7\n  lr: 1e-3\n")
    return file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        if name == "scorer":  # a choice of sections; the default stands for them
            yield from leaves(DeviationConfig, "scorer.")
            continue
        if name == "part":
            yield from leaves(InversionConfig, f"{prefix}part.")
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_configurations_load(file: Path) -> None:
    assert load_config(file).train.steps >= 1


def test_every_key_is_documented() -> None:
    described = dict(leaves(RunConfig))
    assert len(described) > 40
    for name in scorer_names():
        described |= dict(leaves(scorer_config(name), f"{name}."))
    assert [key for key, text in described.items() if not text and not key.endswith(".name")] == []


def test_values_of_file_and_overrides(path: Path) -> None:
    config = load_config(path, ["train.global_batch=32", "data.manifests=[a, b]", "features.cache=s3://x", "name=your"])
    assert (config.name, config.train.steps, config.train.lr) == ("your", 7, 0.001)
    assert config.train.global_batch == 32
    assert config.data.manifests == ("a", "b")
    assert config.features.cache == "s3://x"
    assert config.run_dir == Path("runs/your")


def test_the_last_override_wins_and_null_is_a_value(path: Path) -> None:
    assert load_config(path, ["train.steps=1", "train.steps=2"]).train.steps == 2
    assert load_config(path, ["train.micro_batch=4", "train.micro_batch=null"]).train.micro_batch is None


def test_a_value_may_contain_an_equals_sign(path: Path) -> None:
    assert load_config(path, ["tracking.uri=http://host?a=b"]).tracking.uri == "http://host?a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.step=5", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("trian.steps=5", "unknown key 'trian'; did you mean 'train'?"),
        ("features.bakcbone=x", "did you mean 'features.backbone'?"),
        ("scorer.zzzz=1", "valid keys: covariance, images, locations, memory, name, part."),
        ("protocol.blur=1", "did you mean 'protocol.blur_sigma'?"),
        ("train.steps=many", "train.steps: Input should be a valid integer.*got 'many'"),
        ("train.steps=1.5", "train.steps: .*integer.*got 1.5"),
        ("train.steps=0", "train.steps: .*greater than or equal to 1, got 0"),
        ("data.holdout=0.9", "data.holdout: .*less than 0.9, got 0.9"),
        ("train.lr=.nan", "train.lr: .*greater than 0"),
        ("train.ema=1", "train.ema: .*less than 1"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 1, 2 or 3, got 4"),
        ("scorer.name=magic", "scorer.name: unknown scorer 'magic'; choose one of ddim, density, deviation, endpoint,"),
        ("features.taps=[]", "features.taps: .*at least 1 item"),
        ("features.taps=[0,x]", r"features.taps.1: .*got 'x'"),
        ("train=5", "train: .*got 5"),
        ("name=a/b", "name: String should match pattern"),
        ("name=''", "name: "),
        ("train.micro_batch=3", "train.global_batch 16 must be a multiple of train.micro_batch 3"),
        ("train.steps", "write it as section.key=value"),
        ("=5", "write it as section.key=value"),
        ("train.steps.x=5", "'steps' is a value, not a section"),
        ("train.steps=[", "not valid YAML"),
    ],
)
def test_bad_values_are_explained(path: Path, override: str, words: str) -> None:
    message = refusal(path, override)
    assert re.search(words, message), message


def test_errors_of_the_file_name_it(path: Path) -> None:
    path.write_text("train: {step: 5}")
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [", "not valid YAML"), (b"- a", "mapping of sections, found list"), (b"\xff\xfe\xfa", "not valid YAML")],
)
def test_files_that_are_no_configuration(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    message = refusal(path)
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in refusal(tmp_path / name)


def test_a_section_left_empty_means_its_defaults(path: Path) -> None:
    """Commenting out every key of a section leaves `train:` behind, which YAML reads as null."""
    path.write_text("train:\n  # steps: 5\ndata:\n")
    assert load_config(path) == RunConfig()
    assert load_config(path, ["train.steps=9"]).train.steps == 9


def test_a_dumped_configuration_loads_again(path: Path) -> None:
    overrides = ["data.manifests=[s3://a/b, /c d]", "train.betas=[0.8, 0.95]", "protocol.map_size=64", "train.lr=3e-7"]
    config = load_config(path, overrides)
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert parse_config(yaml.safe_load(dump_config(RunConfig())), source="x") == RunConfig()


def test_the_flat_configuration_has_every_key() -> None:
    flat = flat_config(RunConfig())
    assert set(flat) == {key for key, _ in leaves(RunConfig)}
    assert flat["train.steps"] == RunConfig().train.steps
    assert flat["name"] == "fmad"
    nested = {key for key, value in flat.items() if isinstance(value, dict)}
    assert nested == {"data.weights", "data.class_weights"}  # mappings that the user fills, not sections


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.steps = 5  # type: ignore[misc]


def test_a_skip_connection_fits_network_and_path(path: Path) -> None:
    assert "model.skip gaussian is the field of a flow-matching path" in refusal(
        path, "model.skip=gaussian", "objective.path=vp"
    )
    assert "model.skip learned belongs to the DiT" in refusal(path, "model.skip=learned", "model.network=unet")


def test_a_part_of_the_scorer_can_be_set_alone(path: Path) -> None:
    config = load_config(path, ["scorer.part.steps=7"])
    assert config.scorer == DeviationConfig(part=InversionConfig(steps=7))
    assert flat_config(config)["scorer.part.steps"] == 7
    assert load_config(path, ["scorer.part.name=endpoint"]).scorer == DeviationConfig(part=EndpointConfig())
    assert "scorer.part.zzzz" in refusal(path, "scorer.part.zzzz=7")


def test_a_name_that_is_no_file_is_a_shipped_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # what `fmad demo` makes
    assert find_config("demo") == FOLDER / "demo.yaml"
    assert load_config("demo").name == "demo"
    assert load_bench("benchmarks/five").title == "Five benchmarks"
    assert load_gate(Path("registry/gate")).parity_images == 16
    assert {"demo", "benchmarks/five", "benchmarks/methods/forward", "registry/gate"} <= set(shipped_names())


def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("name: mine")
    assert load_config("demo").name == "mine"
    assert find_config("demo", folder=FOLDER) == FOLDER / "demo.yaml"


def test_a_bench_takes_the_file_beside_it_or_a_shipped_one(tmp_path: Path) -> None:
    bench, benchmarks = tmp_path / "bench.yaml", "benchmarks: {own: {manifests: [data]}}"
    bench.write_text(f"run: {{config: demo}}\n{benchmarks}")
    assert load_bench(bench).run["train"]["steps"] == 800
    (tmp_path / "base.yaml").write_text("train: {steps: 7}")
    bench.write_text(f"run: {{config: base.yaml}}\n{benchmarks}")
    assert load_bench(bench).run["train"]["steps"] == 7


@pytest.mark.parametrize("name", ["dem", "/demo", "../configs/demo"])
def test_an_unknown_name_lists_what_is_shipped(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: no such file, .* shipped: benchmarks/five, .*registry/gate\.$"):
        load_config(name)
    with pytest.raises(UserError, match=r"demo\.yml: the configuration cannot be read"):
        load_config("demo.yml")


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=http://me:SECRET@host:5000",
        "tracking.uri=postgresql://me:SECRET@db/mlflow",
        "data.manifests=[s3://bucket/a, 'https://host/b?sig=SECRET']",
        "train.checkpoint_url=s3://KEY:SECRET@bucket/x",
        "tracking.url=http://me:SECRET@host",
    ],
)
def test_secrets_are_refused_with_the_fix_and_without_saying_them(path: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    said = str(caught.value)
    assert override.partition("=")[0] in said
    assert "SECRET" not in said
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI")
    assert all(name in said for name in (names if "tracking.uri" in said else ("environment",)))
