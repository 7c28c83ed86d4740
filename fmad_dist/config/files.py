"""Configuration files: YAML + dotted overrides -> one frozen `RunConfig`; errors name the nearest valid key.

Other configurations share its parts: reading a tree, overriding it, merging trees, validating with a sentence.
Configurations come with fmad, too: configs/ of the repository, fmad_dist/configs/ of an installed package.
"""

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

import fmad_dist
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.secrets import holds_secret
from fmad_dist.config.run import RunConfig
from fmad_dist.config.scorers import UNKNOWN_KEY, UNKNOWN_SCORER, ScorerConfig

Model = typing.TypeVar("Model", bound=BaseModel)
_INSTALLED = Path(fmad_dist.__file__).parent / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    tree = read_tree(path)
    override_all(tree, overrides)
    return parse_config(tree, source=str(path))


def read_tree(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, or of a shipped one by its name, without headings that have no keys below them.

    Raises:
        UserError: the file cannot be read or is not a mapping.
    """
    try:
        tree = yaml.safe_load(find_config(path).read_text()) or {}
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
    return validated(RunConfig, tree, source)


def validated(model: type[Model], tree: dict[str, Any], source: str) -> Model:
    """A nested mapping as a configuration.

    Raises:
        UserError: the first problem, as one sentence that names the source.
    """
    _refuse_secrets(tree, source, "")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, model)}") from None


def _refuse_secrets(value: object, source: str, path: str) -> None:
    """A configuration is stored with the run, its checkpoints and its detector, and on the MLflow server."""
    if isinstance(value, str) and "://" in value and holds_secret(value):
        fix = "put it into the environment (AWS_ACCESS_KEY_ID, a profile or a role)"
        if path.endswith("tracking.uri"):
            fix = (
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment, or, of a database, "
                "MLFLOW_TRACKING_URI instead of this key"
            )
        raise UserError(f"{source}: {path}: the URL holds a password or a token, which would be stored; {fix}.")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, one in inner:
        _refuse_secrets(one, source, f"{path}.{key}" if path else str(key))


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
    *parents, key = map(str, problem["loc"] or ("",))
    path = ".".join([*parents, key])
    message, context = problem["msg"].removeprefix("Value error, "), problem.get("ctx", {})
    if problem["type"] in ("extra_forbidden", UNKNOWN_KEY):
        valid = context.get("valid") or sorted(_section(model, parents).model_fields)
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*parents, near[0]])!r}?" if near else f"valid keys: {', '.join(valid)}."
        return f"unknown key {path!r}; {hint}"
    if isinstance(context.get("error"), UserError):
        return message
    if problem["type"] == UNKNOWN_SCORER or not path:
        return f"{path}: {message}." if path else f"{message}."
    return f"{path}: {message}, got {problem['input']!r}."


def _section(model: type[BaseModel], keys: typing.Sequence[str]) -> type[BaseModel]:
    """The section that the keys lead to from a configuration."""
    for key in keys:
        if key in model.model_fields:
            annotation = model.model_fields[key].annotation
            options = typing.get_args(annotation) or (annotation,)  # of a union, or of a mapping to sections
            found = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
            model = found[0] if found else model
    return model


def find_config(path: str | Path, folder: Path = Path()) -> Path:
    """The file at `path`, from `folder` on, or what is shipped under that name, for example `benchmarks/five`.

    Raises:
        UserError: `path` is no file and has no suffix, and nothing of that name is shipped.
    """
    file = folder / path
    if str(path) in shipped_names() and not file.is_file():
        return FOLDER / f"{path}.yaml"
    if not file.exists() and not file.suffix:
        raise UserError(f"{path}: no such file, and no configuration that is shipped: {', '.join(shipped_names())}.")
    return file


def shipped_names() -> list[str]:
    """What `find_config` takes beside paths."""
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml"))
