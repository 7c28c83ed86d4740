"""Every key of a run's configuration with its type, default and meaning, read from the schema that validates it."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import RunConfig

Schema = dict[str, Any]
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key as a configuration file or an override writes it. `scorer` names the scorer that has the option, empty
    for keys that are there whatever the scorer."""

    name: str
    type: str
    default: str
    meaning: str
    scorer: str = ""


def config_keys(section: str | None = None) -> list[Key]:
    """All keys of a run's configuration in order, or those of a section (`train`, `scorer`) or one key (`train.lr`).

    Raises:
        UserError: there is no such section or key.
    """
    schema = RunConfig.model_json_schema()
    keys = list(_keys(schema, "", schema["$defs"]))
    if section is None:
        return keys
    found = [key for key in keys if f"{key.name}.".startswith(f"{section}.")]
    if not found:
        raise _unknown(section, [*schema["properties"], *(key.name for key in keys)])
    return found


def config_schema(section: str | None = None) -> Schema:
    """The JSON schema of a configuration, or of one of its sections.

    Raises:
        UserError: there is no such section.
    """
    schema = RunConfig.model_json_schema()
    if section is None:
        return schema
    if section not in schema["properties"]:
        raise _unknown(section, list(schema["properties"]))
    return schema["properties"][section] | {"$defs": schema["$defs"]}


def _keys(schema: Schema, prefix: str, definitions: Schema, scorer: str = "") -> Iterator[Key]:
    for name, field in schema["properties"].items():
        path, choices = prefix + name, _choices(field)
        if "$ref" in field:
            yield from _keys(_definition(field, definitions), f"{path}.", definitions, scorer)
        elif choices and not scorer:  # the scorer itself: its name, then the options of each
            meaning = f"which scorer; each has the options below that name it ({path}.key=value)"
            yield Key(f"{path}.name", " | ".join(choices), field["default"]["name"], meaning)
            for choice, reference in choices.items():
                yield from _keys(_definition({"$ref": reference}, definitions), f"{path}.", definitions, choice)
        elif not (scorer and name == "name"):
            yield Key(path, _type(field), _default(field["default"]), field.get("description", ""), scorer)


def _definition(field: Schema, definitions: Schema) -> Schema:
    return definitions[field["$ref"].rpartition("/")[2]]


def _choices(field: Schema) -> dict[str, str]:
    """The names of a union of scorers and the reference to the schema of each, empty for other fields."""
    return field.get("discriminator", {}).get("mapping", {})


def _type(field: Schema) -> str:
    """For people: `integer >= 1`, `a | b`, `list of integer`, `number or null`, `fixed` for the only value there is."""
    if choices := _choices(field):
        return f"scorer {' | '.join(choices)}"
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return "fixed"
    if "prefixItems" in field:
        return f"[{', '.join(map(_type, field['prefixItems']))}]"
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object":
        return f"mapping of names to {_type(field['additionalProperties'])}"
    bounds = [f"{sign} {field[bound]:.10g}" for bound, sign in BOUNDS.items() if bound in field]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _default(value: Any) -> str:
    """As YAML takes it; of a scorer only its name."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if isinstance(value, list):
        return f"[{', '.join(map(_default, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _unknown(section: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
    sections = ", ".join(dict.fromkeys(name.partition(".")[0] for name in known))
    hint = f"did you mean {near[0]!r}?" if near else f"sections and keys: {sections}."
    return UserError(f"configuration: no section or key {section!r}; {hint}")
