"""The typed configuration of a run; `config/files.py` reads it from YAML and dotted overrides.

Every field has a help text; an unknown key fails and names the nearest valid one. The resolved configuration is saved
with the run, so a run directory alone says exactly what was trained.
"""

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from fmad_dist.config.protocol import Protocol
from fmad_dist.config.scorers import DEFAULT_SCORER, ScorerChoice, ScorerConfig, default_config

PositiveFloat = typing.Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
DecayRate = typing.Annotated[float, Field(ge=0.0, lt=1.0)]
PresetName = Literal["tiny", "small", "B", "L", "H", "G"]
ScoringPrecision = Literal["fp32", "bf16"]
SkipName = Literal["none", "learned", "gaussian"]


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read: where read blocks are kept, how large that may grow, how long to wait for the storage."""

    cache: str | None = None
    cache_bytes: int = 100 * 10**9
    patience_s: float = 30.0


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and values cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Section):
    """Which datasets train, in what proportions, and how they are read."""

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
    def reading(self) -> ReadOptions:
        """What of this concerns the readers of shards."""
        return ReadOptions(self.cache, int(self.cache_gb * 1e9), self.patience_s)


class FeatureConfig(Section):
    """What images are turned into before the flow: the features of a frozen backbone."""

    backbone: str = Field(
        "tf_efficientnet_lite0", description="any timm model that supports features_only, or pixels = the RGB image"
    )
    weights: str = Field("auto", description="auto = PyPI package or timm hub; or the path of a weights file")
    taps: tuple[int, ...] = Field((0, 1, 2, 3), min_length=1, description="feature stages of the backbone to merge")
    grid: int = Field(16, ge=2, description="side of the feature map; for pixels the side the image is reduced to")
    reduction: Literal["adaptive", "pool3"] = Field(
        "adaptive", description="to the grid by adaptive averaging, or by 3 x 3 averages with stride 2 as WT-Flow does"
    )
    norm: Literal["channel", "layer"] = Field(
        "channel", description="channel = mean and deviation of the training normals; layer = per image over (C, H, W)"
    )
    image_size: int = Field(256, ge=32, description="side of the square input in pixels; equals the stored rendition")
    cache: str | None = Field(None, description="URL for computed features; null computes them anew in every epoch")


class ObjectiveConfig(Section):
    """The path between noise and data, how they are paired, and the distribution of training times."""

    path: Literal["forward", "reversed", "vp"] = Field(
        "forward", description="forward: noise at t = 0; reversed: data at t = 0; vp = diffusion with noise prediction"
    )
    coupling: Literal["independent", "ot", "wt_sample", "wt_token", "wt_group", "wt_soft"] = Field(
        "independent", description="how noise is paired with data inside a micro batch; wt = worst transport"
    )
    window: int = Field(512, ge=2, le=512, description="wt_token, wt_group: tokens that are paired with each other")
    group: int = Field(8, ge=1, description="wt_group: consecutive channels paired together; 1 = sorting")
    strength: float = Field(0.5, ge=0.0, le=1.0, description="wt_soft: a token and its noise have cosine -this")
    times: Literal["uniform", "logit_normal"] = Field("uniform", description="distribution of training times t")
    time_mean: float = Field(0.0, description="logit_normal: mean of logit(t)")
    time_std: PositiveFloat = Field(1.0, description="logit_normal: standard deviation of logit(t)")

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveConfig":
        if self.path == "vp" and self.coupling != "independent":
            raise ValueError(f"coupling {self.coupling} needs a flow-matching path; path vp takes independent noise")
        return self


class ModelConfig(Section):
    """The network that learns the flow."""

    network: Literal["dit", "unet"] = Field("dit", description="diffusion transformer, or a convolutional U-Net")
    preset: PresetName = Field("tiny", description="DiT size: tiny 192x4, small 384x12, B, L, H, G")
    patch: int = Field(1, ge=1, description="dit: side of the patch that becomes a token; 1 for features")
    skip: SkipName = Field(
        "none", description="dit: add g(t) x to the output; gaussian starts g at the exact field of N(0, I) data"
    )
    width: int = Field(128, ge=32, multiple_of=32, description="unet: channels at full resolution")
    levels: tuple[int, ...] = Field((1, 2, 2), min_length=1, description="unet: width factor of each resolution")
    blocks: int = Field(1, ge=1, description="unet: residual blocks per resolution")
    use_labels: bool = Field(False, description="condition on the class while training; never needed at test time")
    label_drop: float = Field(0.5, gt=0.0, le=1.0, description="share of samples trained without their label")
    checkpointing: bool | None = Field(
        None,
        description="recompute activations in the backward pass to save memory, a third more work; null = where the "
        "GPU's memory would not do otherwise",
    )


class TrainConfig(Section):
    """Optimizer, precision, checkpoints, and what ends a run."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    global_batch: int = Field(16, ge=1, description="samples per optimizer step over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="samples per forward pass and process; null = global_batch / processes"
    )
    lr: float = Field(1e-3, gt=0.0, description="peak learning rate")
    warmup_samples: int = Field(1600, ge=0, description="samples of linear warm-up")
    decay: Literal["cosine", "step"] = Field("cosine", description="after the warm-up: cosine to zero, or in steps")
    decay_every: float = Field(0.25, gt=0.0, le=1.0, description="decay step: share of the training between reductions")
    decay_factor: float = Field(0.5, gt=0.0, le=1.0, description="decay step: factor of each reduction")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.999), description="AdamW moment decay rates")
    clip: float = Field(1.0, gt=0.0, description="global gradient norm limit")
    ema: float = Field(0.999, ge=0.0, lt=1.0, description="decay per step of the averaged weights that are deployed")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="compute precision; auto = bf16 where the hardware has it. Masters and EMA stay fp32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile the network; auto = on a GPU, not under ZeRO-3, whose hooks split the graph"
    )
    zero_stage: Literal[1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    seed: int = Field(0, ge=0, description="keys initial weights, epoch order, noise and times")
    log_every: int = Field(20, ge=1, description="steps between metric records")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints; one is always made at the end")
    checkpoint_url: str | None = Field(
        None, description="folder or URL for the checkpoints of all runs, in a folder each; null = the run's own folder"
    )
    log_samples: bool = Field(False, description="write every sample id and position to samples-<rank>.jsonl (audit)")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that are kept")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of multiples of so many steps stay for good")
    hang_s: float = Field(1800.0, gt=0.0, description="seconds without a step until stacks are dumped and the job ends")
    max_skipped: int = Field(
        5,
        ge=1,
        description="steps in a row without a finite gradient until training goes back to a checkpoint",
    )
    max_rollbacks: int = Field(2, ge=0, description="returns to a checkpoint for that reason until the job ends")


class CalibrationConfig(Section):
    """Thresholds from held-out normal images."""

    false_alarm_rate: float = Field(
        0.01, gt=0.0, lt=0.5, description="share of normal images allowed above a class's threshold"
    )
    precision: ScoringPrecision = Field(
        "fp32", description="of the network when it scores, calibration included; bf16 is several times faster on a GPU"
    )


class TrackingConfig(Section):
    """The copy of the run on an MLflow server."""

    mlflow: bool = Field(True, description="copy the run to MLflow and register the detector")
    uri: str | None = Field(None, description="tracking server; null = MLFLOW_TRACKING_URI or <output>/mlflow.db")
    experiment: str = Field("fmad", description="MLflow experiment")
    model_name: str = Field("fmad", description="registered model that new versions go to; a name without / : and @")
    parent_run: str | None = Field(None, description="MLflow run that this one is part of, a sweep for example")

    @field_validator("model_name")
    @classmethod
    def _check_model_name(cls, name: str) -> str:
        """MLflow refuses these names, but only when the training is over; @ would be read as that of an alias."""
        if not name.strip(" .") or any(mark in name for mark in "/:@"):
            raise ValueError(f"{name!r} cannot be the name of a registered model; take one without / : and @")
        return name


class RunConfig(Section):
    """Everything that defines a run."""

    name: str = Field("fmad", pattern=r"^[A-Za-z0-9._-]+$", description="the run's folder is <output>/<name>")
    output: str = Field("runs", description="folder of all runs")
    data: DataConfig = DataConfig()
    features: FeatureConfig = FeatureConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    scorer: typing.Annotated[SerializeAsAny[ScorerConfig], ScorerChoice(DEFAULT_SCORER)] = Field(
        default_factory=default_config
    )
    calibration: CalibrationConfig = CalibrationConfig()
    protocol: Protocol = Protocol()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        micro, total = self.train.micro_batch, self.train.global_batch
        if micro is not None and total % micro:
            raise ValueError(f"train.global_batch {total} must be a multiple of train.micro_batch {micro}")
        grid, patch, levels = self.features.grid, self.model.patch, len(self.model.levels)
        if self.model.network == "dit" and grid % patch:
            raise ValueError(f"features.grid {grid} must be a multiple of model.patch {patch}")
        if self.model.skip == "gaussian" and self.objective.path == "vp":
            raise ValueError("model.skip gaussian is the field of a flow-matching path; path vp takes none or learned")
        if self.model.skip != "none" and self.model.network == "unet":
            raise ValueError(f"model.skip {self.model.skip} belongs to the DiT; remove it for model.network unet")
        if self.model.network == "unet" and grid % 2 ** (levels - 1):
            raise ValueError(f"features.grid {grid} cannot be halved {levels - 1} times; use fewer model.levels")
        return self

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.output) / self.name

    @property
    def checkpoint_url(self) -> str:
        """Where the checkpoints of this run are, below one folder per step."""
        url = self.train.checkpoint_url
        return f"{url.rstrip('/')}/{self.name}" if url else str(self.run_dir / "checkpoints")
