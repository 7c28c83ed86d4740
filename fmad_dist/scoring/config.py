"""Configuration of every scorer: one class each, chosen by `name`, so that an option of another scorer is an error."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Solver = Literal["euler", "midpoint", "heun"]


class ScorerSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InversionConfig(ScorerSection):
    name: Literal["inversion"] = "inversion"
    steps: int = Field(3, ge=1, description="solver steps from the image to noise")
    solver: Solver = Field("euler", description="solver of the flow's equation")


class ReconstructionConfig(ScorerSection):
    name: Literal["reconstruction"] = "reconstruction"
    tau: float = Field(0.5, gt=0.0, lt=1.0, description="start time, 0 = all noise, 1 = all data")
    noises: int = Field(1, ge=1, description="noise draws averaged per image")
    steps: int = Field(3, ge=1, description="solver steps from tau to the image")
    solver: Solver = Field("euler", description="solver of the flow's equation")
    start: Literal["noise", "invert"] = Field(
        "noise", description="noise = eq. 3; invert = walk back from the image instead, an ablation: pure solver error"
    )


class DensityConfig(ScorerSection):
    name: Literal["density"] = "density"
    steps: int = Field(5, ge=1, description="solver steps from the image to noise")
    solver: Solver = Field("euler", description="solver of the flow's equation")
    probes: int = Field(10, ge=1, description="Rademacher probes of the divergence per evaluation")
    mask_stride: int = Field(
        1, ge=1, description="n > 1: a probe is split into n * n that touch every n-th row and column; less variance"
    )
    trace: Literal["hutchinson", "exact"] = Field(
        "hutchinson", description="exact = one product per dimension, for small inputs and as a reference"
    )
    chunk: int = Field(8, ge=1, description="images whose activations are held at a time")


class MismatchConfig(ScorerSection):
    name: Literal["mismatch"] = "mismatch"
    noises: int = Field(8, ge=1, description="noise draws K per image and time")
    times: int = Field(8, ge=1, description="number T of times t_j = j / (T + 1)")
    grid: tuple[float, ...] = Field((), description="times themselves, each in (0, 1); empty = the T above")
    aggregate: Literal["min", "quantile", "mean"] = Field("min", description="over the K draws at each time")
    quantile: float = Field(0.1, ge=0.0, le=1.0, description="aggregate quantile: which, 0.1 = p10")
    weighted: bool = Field(True, description="weight the times by t^2, which cancels the 1 / t^2 of the noise")
    postprocess: Literal["protocol", "paper"] = Field(
        "protocol", description="paper: image score = maximum + mean of the top 1 %"
    )

    @field_validator("grid")
    @classmethod
    def _inside(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < t < 1.0 for t in grid):
            raise ValueError("every time must be inside (0, 1); at t = 1 there is no noise left to disagree about")
        return grid


class EndpointConfig(ScorerSection):
    name: Literal["endpoint"] = "endpoint"
    steps: int = Field(1, ge=1, description="Euler steps from the image to noise")
    postprocess: Literal["protocol", "paper"] = Field(
        "protocol", description="paper: max exp(logp) - exp(logp) per image, image score = mean of the top 3 %"
    )


class ResidualConfig(ScorerSection):
    name: Literal["residual"] = "residual"


class DDIMConfig(ScorerSection):
    name: Literal["ddim"] = "ddim"
    steps: int = Field(3, ge=1, description="deterministic diffusion steps from the image to noise")


VectorPart = Annotated[InversionConfig | EndpointConfig | ResidualConfig | DDIMConfig, Field(discriminator="name")]
SinglePart = Annotated[
    InversionConfig
    | ReconstructionConfig
    | DensityConfig
    | MismatchConfig
    | EndpointConfig
    | ResidualConfig
    | DDIMConfig,
    Field(discriminator="name"),
]


class DeviationConfig(ScorerSection):
    name: Literal["deviation"] = "deviation"
    part: VectorPart = Field(InversionConfig(), description="scorer whose vectors are judged, one without draws")
    covariance: bool = Field(
        True, description="measure vectors by the covariance of the class's normal images; not above 1024 channels"
    )
    locations: bool = Field(True, description="measure scores by the mean and deviation they have at that place")
    memory: int = Field(
        4096,
        ge=0,
        description="vectors of each class's normal images that are kept, to score by the nearest; 0 = score by their "
        "mean and covariance alone",
    )
    images: int = Field(4000, ge=1, description="training normals that are looked at, over all classes")

    @field_validator("memory")
    @classmethod
    def _halves(cls, memory: int) -> int:
        if memory == 1:
            raise ValueError("one half is kept of every second image, so at least 2, or 0 for none")
        return memory


class FusionConfig(ScorerSection):
    name: Literal["fusion"] = "fusion"
    parts: tuple[SinglePart, ...] = Field(
        (InversionConfig(), EndpointConfig()),
        min_length=2,
        description="scorers whose z-scores, calibrated on held-out normals, are averaged",
    )


ScorerConfig = Annotated[
    InversionConfig
    | ReconstructionConfig
    | DensityConfig
    | MismatchConfig
    | EndpointConfig
    | ResidualConfig
    | DDIMConfig
    | FusionConfig
    | DeviationConfig,
    Field(discriminator="name"),
]

SCORER_CONFIGS: dict[str, type[ScorerSection]] = {
    "inversion": InversionConfig,
    "reconstruction": ReconstructionConfig,
    "density": DensityConfig,
    "mismatch": MismatchConfig,
    "endpoint": EndpointConfig,
    "residual": ResidualConfig,
    "ddim": DDIMConfig,
    "fusion": FusionConfig,
    "deviation": DeviationConfig,
}
