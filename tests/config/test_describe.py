"""Every key of a configuration is told, as the schema that validates it has it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from fmad_dist.base.errors import UserError
from fmad_dist.cli import app
from fmad_dist.config.describe import Key, config_keys, config_schema
from fmad_dist.config.files import load_config, override_all, parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.config.scorers import scorer_config, scorer_names


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "scorer":
            yield "scorer.name"
            continue
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        yield from fields(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]


def told(name: str, scorer: str = "") -> Key:
    (found,) = [key for key in config_keys(name) if (key.name, key.scorer) == (name, scorer)]
    return found


def test_every_key_of_a_run_is_told_once_and_explained() -> None:
    keys = config_keys()
    assert sorted(key.name for key in keys if not key.scorer) == sorted(fields(RunConfig))
    kinds = {name: scorer_config(name) for name in scorer_names()}
    options = {(name, f"scorer.{key}") for name, kind in kinds.items() for key in kind.model_fields if key != "name"}
    assert {(key.scorer, key.name) for key in keys if key.scorer} == options
    assert len({(key.name, key.scorer) for key in keys}) == len(keys)
    assert [key for key in keys if not key.meaning] == []


@pytest.mark.parametrize(
    ("name", "scorer", "kind", "default"),
    [
        ("train.steps", "", "integer >= 1", "1000"),
        ("train.lr", "", "number > 0", "0.001"),
        ("train.betas", "", "[number >= 0, < 1, number >= 0, < 1]", "[0.9, 0.999]"),
        ("train.micro_batch", "", "integer >= 1 or null", "null"),
        ("model.width", "", "integer >= 32, a multiple of 32", "128"),
        ("data.mode", "", "indexed | sequential", "indexed"),
        ("data.weights", "", "mapping of names to number > 0", "{}"),
        ("protocol.version", "", "fixed", "1"),
        ("scorer.name", "", " | ".join(scorer_names()), "deviation"),
        ("scorer.probes", "density", "integer >= 1", "10"),
        ("scorer.part", "deviation", "scorer ddim | endpoint | inversion | residual", "inversion"),
    ],
)
def test_types_and_defaults_are_those_of_the_schema(name: str, scorer: str, kind: str, default: str) -> None:
    assert (told(name, scorer).type, told(name, scorer).default) == (kind, default)


def test_the_told_defaults_are_valid_and_change_nothing() -> None:
    tree: dict[str, object] = {}
    override_all(tree, [f"{key.name}={key.default}" for key in config_keys() if not key.scorer])
    assert parse_config(tree, "the defaults") == RunConfig()


def test_an_unknown_section_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'trian'; did you mean 'train'"):
        config_keys("trian")
    with pytest.raises(UserError, match=r"'train\.stpes'; did you mean 'train\.steps'"):
        config_keys("train.stpes")
    with pytest.raises(UserError, match="sections and keys: name, output, data"):
        config_schema("xyz")


def test_the_shown_configuration_is_one_that_gives_itself(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("name: mine\ntrain: {steps: 7}\n")
    command = ["config", "show", "--config", str(tmp_path / "small.yaml"), "scorer.name=density", "train.lr=0.5"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    wanted = load_config(tmp_path / "small.yaml", ["scorer.name=density", "train.lr=0.5"])
    assert load_config(tmp_path / "shown.yaml") == wanted
    assert wanted.train.steps == 7
    assert "global_batch: 16" in shown.stdout  # a default is filled in


def test_the_command_tells_a_section_as_a_table_and_as_json() -> None:
    table = CliRunner().invoke(app, ["config", "schema", "train"]).stdout.splitlines()
    assert table[0].split() == ["key", "type", "default", "meaning"]
    assert ["train.steps", "integer", ">=", "1", "1000", "optimizer", "steps"] in [line.split() for line in table]
    assert not [line for line in table[1:] if line.split()[0].startswith("data.")]
    body = json.loads(CliRunner().invoke(app, ["config", "schema", "--json"]).stdout)
    assert body == RunConfig.model_json_schema()
    one = json.loads(CliRunner().invoke(app, ["config", "schema", "data", "--json"]).stdout)
    assert one["$ref"] == "#/$defs/DataConfig"
    assert "manifests" in one["$defs"]["DataConfig"]["properties"]
