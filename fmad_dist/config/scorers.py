"""Scorers by name: the base class of their configurations, and the registry of those that are installed.

A scorer is registered by an entry point in the pyproject.toml of the package that has it, fmad's own ones like yours:

    [project.entry-points."fmad.scorers"]
    inversion = "fmad_dist.scoring.inversion:InversionConfig"

The name of the entry point is the `name` of the configuration. Only the module of a scorer that is asked for is
imported, so a configuration or the detector.json of a stranger can name what is installed here and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from fmad_dist.base.errors import UserError, first_line

GROUP = "fmad.scorers"
DEFAULT_SCORER = "deviation"  # of a run that names none
UNKNOWN_SCORER, UNKNOWN_KEY = "unknown_scorer", "unknown_key"  # types of pydantic's errors


class ScorerConfig(BaseModel):
    """The options of a scorer, chosen by `name`; every registered one is a `scoring.interface.ScoringMethod`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    @property
    def title(self) -> str:
        """The scorer's name and the options that differ from its defaults: `inversion steps=10`."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.changed_options().items())])

    def changed_options(self) -> dict[str, object]:
        """The options that differ from the defaults, with their values as a title shows them."""
        return {key: getattr(self, key) for key in self.model_dump(exclude_defaults=True, exclude={"name"})}


@cache
def _registered() -> dict[str, EntryPoint]:
    """The entry points of all scorers by name, sorted.

    Raises:
        UserError: fmad's own are missing, or two packages register different scorers under one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if found.setdefault(point.name, point).value != point.value:
            raise UserError(
                f"scorer {point.name}: registered as {found[point.name].value} and as {point.value}; uninstall one of "
                "the two packages."
            )
    if DEFAULT_SCORER not in found:
        raise UserError(
            f"no scorer of fmad is registered (entry points {GROUP}): fmad-dist is not installed, or was before its "
            "scorers were registered; install it again (`pip install -e .` in a checkout)."
        )
    return found


def scorer_names() -> list[str]:
    """The names of all scorers that are installed, sorted; none is imported."""
    return list(_registered())


@cache
def scorer_config(name: str) -> type[ScorerConfig]:
    """The configuration class of one of `scorer_names`, whose module is imported.

    Raises:
        UserError: the package that registers it is broken.
    """
    point = _registered()[name]
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"scorer {name}: {point.value} cannot be imported ({first_line(error)}).") from None
    if not (isinstance(kind, type) and issubclass(kind, ScorerConfig) and kind.model_fields["name"].default == name):
        raise UserError(f"scorer {name}: {point.value} is no ScorerConfig whose `name` is {name!r} by default.")
    return kind


def default_config(name: str = DEFAULT_SCORER) -> ScorerConfig:
    """The scorer of this name with its default options."""
    return scorer_config(name).model_validate({})


@dataclass(frozen=True)
class ScorerChoice:
    """Marks a field of a pydantic model that holds a registered scorer, chosen by the `name` in the mapping.

    `default` is the name where the mapping has none; `usable` says which scorers the field may hold, all if it is None.
    """

    default: str | None = None
    usable: Callable[[type[ScorerConfig]], bool] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A union of all usable scorers with `name` as its discriminator."""
        kinds = {name: scorer_config(name).__pydantic_core_schema__ for name in self._names()}
        union = handler(core_schema.tagged_union_schema(kinds, "name"))
        return union | ({"default": default_config(self.default).model_dump(mode="json")} if self.default else {})

    def _names(self) -> list[str]:
        return [name for name in scorer_names() if self.usable is None or self.usable(scorer_config(name))]

    def _read(self, value: Any) -> Any:
        """The mapping as the configuration of the scorer that it names; pydantic refuses what is no mapping."""
        if isinstance(value, ScorerConfig):
            return self._checked(value)
        if not isinstance(value, dict):
            return value
        name = value.get("name", self.default)
        if name not in scorer_names():
            raise _refused("name", UNKNOWN_SCORER, f"unknown scorer {name!r}; choose one of {', '.join(self._names())}")
        kind = scorer_config(name)
        for key in value:
            if key not in kind.model_fields:
                raise _refused(str(key), UNKNOWN_KEY, "unknown key", valid=sorted(kind.model_fields))
        return self._checked(kind.model_validate({"name": name} | value))

    def _checked(self, config: ScorerConfig) -> ScorerConfig:
        if self.usable is None or self.usable(type(config)):
            return config
        text = f"scorer {config.name!r} cannot be used here; choose one of {', '.join(self._names())}"
        raise _refused("name", UNKNOWN_SCORER, text)


def _refused(key: str, kind: str, text: str, **context: Any) -> ValidationError:
    """An error about one key of the mapping; pydantic puts the keys that lead to the mapping before it."""
    problem = InitErrorDetails(type=PydanticCustomError(kind, text, context), loc=(key,), input=key)
    return ValidationError.from_exception_data("scorer", [problem])


AnyScorer = Annotated[SerializeAsAny[ScorerConfig], ScorerChoice()]
