"""The typed configuration of a run: YAML file + dotted overrides -> one frozen `RunConfig`.

Every field has a help text; an unknown key fails and names the nearest valid one. The resolved configuration is saved
with the run, so a run directory alone says exactly what was trained.
"""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.protocol import Protocol

if typing.TYPE_CHECKING:
    from fmad_dist.stream.shards import ReadOptions

PositiveFloat = typing.Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
DecayRate = typing.Annotated[float, Field(ge=0.0, lt=1.0)]
PresetName = Literal["tiny", "small", "B", "L", "H", "G"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Section):
    manifests: tuple[str, ...] = Field((), description="URLs of converted datasets; together they are one stream")
    temperature: float = Field(
        1.0, ge=1.0, description="class balance: 1 = every image once per epoch, large = every class equally often"
    )
    holdout: float = Field(
        0.1, gt=0.0, lt=0.9, description="share of each class's normals kept for calibration; never trained on"
    )
    weights: dict[str, PositiveFloat] = Field(
        {}, description="share of the stream per dataset, for example {mvtec_ad: 0.7, visa: 0.3}; empty = by size"
    )
    class_weights: dict[str, PositiveFloat] = Field(
        {}, description="factor per class on how often its images appear, for example {mvtec_ad/bottle: 2}"
    )
    workers: int = Field(2, ge=0, description="reader processes per rank; 0 reads in the training process")
    mode: Literal["indexed", "sequential"] = Field(
        "indexed",
        description="indexed = exact order and resume; sequential = foreign tars without an index, weaker guarantees",
    )
    cache: str | None = Field(
        None, description="local folder that keeps what was read from object storage; null = none"
    )
    cache_gb: PositiveFloat = Field(100.0, description="size limit of the cache folder in GB, shared by all its users")
    patience_s: float = Field(300.0, ge=0.0, description="seconds that reads wait for a storage that does not answer")
    max_bad_samples: int = Field(10, ge=0, description="damaged training images that are skipped before the run stops")
    endpoint_url: str | None = Field(None, description="S3 endpoint; null = AWS_ENDPOINT_URL or the profile's")

    @property
    def reading(self) -> "ReadOptions":
        from fmad_dist.stream.shards import ReadOptions

        return ReadOptions(self.cache, int(self.cache_gb * 1e9), self.patience_s)


class FeatureConfig(Section):
    backbone: str = Field("tf_efficientnet_lite0", description="any timm model that supports features_only")
    weights: str = Field("auto", description="auto = PyPI package or timm hub; or the path of a weights file")
    taps: tuple[int, ...] = Field((0, 1, 2, 3), min_length=1, description="feature stages of the backbone to merge")
    grid: int = Field(16, ge=2, description="side of the token grid; tokens = grid * grid")
    image_size: int = Field(256, ge=32, description="side of the square input in pixels; equals the stored rendition")
    cache: str | None = Field(None, description="URL for computed features; null computes them anew in every epoch")


class ModelConfig(Section):
    preset: PresetName = Field("tiny", description="DiT size: tiny 192x4, small 384x12, B, L, H, G")
    use_labels: bool = Field(False, description="condition on the class while training; never needed at test time")
    label_drop: float = Field(0.5, gt=0.0, le=1.0, description="share of samples trained without their label")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")


class TrainConfig(Section):
    steps: int = Field(1000, ge=1, description="optimizer steps")
    global_batch: int = Field(16, ge=1, description="samples per optimizer step over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="samples per forward pass and process; null = global_batch / processes"
    )
    lr: float = Field(1e-3, gt=0.0, description="peak learning rate")
    warmup_samples: int = Field(1600, ge=0, description="samples of linear warm-up; cosine to zero follows")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.999), description="AdamW moment decay rates")
    clip: float = Field(1.0, gt=0.0, description="global gradient norm limit")
    ema: float = Field(0.999, ge=0.0, lt=1.0, description="decay per step of the averaged weights that are deployed")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="compute precision; auto = bf16 where the hardware has it. Masters and EMA stay fp32"
    )
    zero_stage: Literal[1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    seed: int = Field(0, ge=0, description="keys initial weights, epoch order, noise and times")
    log_every: int = Field(20, ge=1, description="steps between metric records")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints; one is always made at the end")
    log_samples: bool = Field(False, description="write every sample id and position to samples-<rank>.jsonl (audit)")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that stay on disk")


class ScorerConfig(Section):
    name: Literal["inversion", "reconstruction"] = Field("inversion", description="how the flow becomes a map")
    steps: int = Field(3, ge=1, description="solver steps")
    solver: Literal["euler", "midpoint", "heun"] = Field("euler", description="solver of the flow's equation")
    tau: float = Field(0.5, gt=0.0, lt=1.0, description="reconstruction: start time, 0 = all noise, 1 = all data")
    noises: int = Field(1, ge=1, description="reconstruction: noise draws averaged per image")


class CalibrationConfig(Section):
    false_alarm_rate: float = Field(
        0.01, gt=0.0, lt=0.5, description="share of normal images allowed above a class's threshold"
    )


class TrackingConfig(Section):
    mlflow: bool = Field(True, description="copy the run to MLflow and register the detector")
    uri: str | None = Field(None, description="tracking server; null = MLFLOW_TRACKING_URI or <output>/mlflow.db")
    experiment: str = Field("fmad", description="MLflow experiment")
    model_name: str = Field("fmad", description="registered model that new versions go to")


class RunConfig(Section):
    """Everything that defines a run."""

    name: str = Field("fmad", pattern=r"^[A-Za-z0-9._-]+$", description="the run's folder is <output>/<name>")
    output: str = Field("runs", description="folder of all runs")
    data: DataConfig = DataConfig()
    features: FeatureConfig = FeatureConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    scorer: ScorerConfig = ScorerConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    protocol: Protocol = Protocol()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        micro, total = self.train.micro_batch, self.train.global_batch
        if micro is not None and total % micro:
            raise ValueError(f"train.global_batch {total} must be a multiple of train.micro_batch {micro}")
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.output) / self.name


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise UserError(f"{path}: the configuration cannot be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, found {type(tree).__name__}.")
    tree = {key: value for key, value in tree.items() if value is not None}  # a heading without keys below it
    for text in overrides:
        _override(tree, text)
    return parse_config(tree, source=str(path))


def parse_config(tree: dict[str, Any], source: str) -> RunConfig:
    """Validate a nested mapping; `source` is named in errors."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def override_scorer(scorer: ScorerConfig, overrides: typing.Sequence[str]) -> ScorerConfig:
    """Apply `scorer.key=value` overrides to a scorer's configuration.

    Raises:
        UserError: an override is of another section, or not valid.
    """
    tree: dict[str, Any] = {"scorer": scorer.model_dump(mode="json")}
    for text in overrides:
        if not text.startswith("scorer."):
            raise UserError(f"override {text!r}: only scorer.key=value can be changed on a trained model.")
        _override(tree, text)
    return parse_config(tree, source="the command line").scorer


def dump_config(config: RunConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat_config(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as `section.key` -> value, for tracking."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


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


def _explain(error: ValidationError) -> str:
    """The first problem as one sentence; unknown keys name the nearest valid one."""
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, key = [str(part) for part in problem["loc"]]
        valid = sorted(_section(parents).model_fields)
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*parents, near[0]])!r}?" if near else f"valid keys: {', '.join(valid)}."
        return f"unknown key {path!r}; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if not path else f", got {problem['input']!r}"
    return f"{path}: {message}{given}." if path else f"{message}."


def _section(path: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = RunConfig
    for name in path:
        annotation = model.model_fields[name].annotation
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return model
