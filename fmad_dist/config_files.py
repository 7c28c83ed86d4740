"""Configuration files: YAML + dotted overrides -> one frozen `RunConfig`; errors name the nearest valid key.

The parts that other configurations share: reading a tree, overriding it, merging trees, validating with a sentence.
"""

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fmad_dist.config import RunConfig
from fmad_dist.errors import UserError, first_line
from fmad_dist.scoring.config import SCORER_CONFIGS, DeviationConfig, ScorerConfig

Model = typing.TypeVar("Model", bound=BaseModel)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    tree = read_tree(path)
    override_all(tree, overrides)
    return parse_config(tree, source=str(path))


def read_tree(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, without headings that have no keys below them.

    Raises:
        UserError: the file cannot be read or is not a mapping.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise UserError(f"{path}: the configuration cannot be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, found {type(tree).__name__}.")
    return {key: value for key, value in tree.items() if value is not None}


def merge_trees(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the values of `over`, section by section; a scorer of another name starts from its own defaults."""
    merged = dict(tree)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            other_scorer = key == "scorer" and value.get("name", old.get("name")) != old.get("name")
            value = value if other_scorer else merge_trees(old, value)
        merged[key] = value
    return merged


def parse_config(tree: dict[str, Any], source: str) -> RunConfig:
    """Validate a nested mapping; `source` is named in errors."""
    scorer = tree.get("scorer")
    if isinstance(scorer, dict):
        named = {"name": RunConfig().scorer.name, **scorer}
        if isinstance(named.get("part"), dict):
            named["part"] = {"name": DeviationConfig().part.name, **named["part"]}
        tree = tree | {"scorer": named}
    return validated(RunConfig, tree, source)


def validated(model: type[Model], tree: dict[str, Any], source: str) -> Model:
    """Raises:
    UserError: the first problem, as one sentence that names the source.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, model)}") from None


def override_scorer(scorer: ScorerConfig, overrides: typing.Sequence[str]) -> ScorerConfig:
    """Apply `scorer.key=value` overrides to a scorer's configuration.

    Raises:
        UserError: an override is of another section, or not valid.
    """
    tree: dict[str, Any] = {"scorer": scorer.model_dump(mode="json")}
    for text in overrides:
        if not text.startswith("scorer."):
            raise UserError(f"override {text!r}: only scorer.key=value can be changed on a trained model.")
    override_all(tree, overrides)
    return parse_config(tree, source="the command line").scorer


def dump_config(config: RunConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat_config(config: BaseModel) -> dict[str, Any]:
    """A configuration or a section of it as `section.key` -> value, as in JSON; for tracking and reports."""
    return dict(_flat(config, config.model_dump(mode="json"), ""))


def _flat(section: BaseModel, dumped: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _flat(value, dumped[name], f"{prefix}{name}.")
        else:
            yield prefix + name, dumped[name]


def override_all(tree: dict[str, Any], overrides: typing.Sequence[str]) -> None:
    """Apply `section.key=value` to a tree, in place. Another `scorer.name` starts that scorer from its own defaults,
    wherever it stands among the overrides."""
    for text in sorted(overrides, key=lambda text: not text.startswith("scorer.name=")):
        scorer = tree.get("scorer")
        if text.startswith("scorer.name=") and isinstance(scorer, dict) and scorer.get("name") != text[12:]:
            tree["scorer"] = {}
        _override(tree, text)


def _override(tree: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"override {text!r}: write it as section.key=value, for example train.steps=500.")
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise UserError(f"override {text!r}: {section!r} is a value, not a section.")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not valid YAML ({first_line(error)}).") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as one sentence; unknown keys name the nearest valid one."""
    problem = error.errors()[0]
    path = ".".join(_place(problem["loc"]))
    if problem["type"] == "extra_forbidden":
        *parents, key = _place(problem["loc"])
        valid = sorted(_section(model, problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*parents, near[0]])!r}?" if near else f"valid keys: {', '.join(valid)}."
        return f"unknown key {path!r}; {hint}"
    if problem["type"] == "union_tag_invalid":
        return f"{path}.name: unknown scorer {problem['ctx']['tag']!r}; choose one of {', '.join(SCORER_CONFIGS)}."
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if not path else f", got {problem['input']!r}"
    return f"{path}: {message}{given}." if path else f"{message}."


def _place(location: tuple[int | str, ...]) -> list[str]:
    """The keys of a place in the file; pydantic adds which scorer it took."""
    return [str(part) for n, part in enumerate(location) if not (n and part in SCORER_CONFIGS)]


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        if part in SCORER_CONFIGS:
            model = SCORER_CONFIGS[str(part)]
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            options = typing.get_args(annotation) or (annotation,)  # of a union, or of a mapping to sections
            found = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
            model = found[0] if found else model
    return model
