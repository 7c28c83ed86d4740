"""Deviation score: how far an image is from what a scorer says of normal images of its class, at each location [ours].

A perfect flow takes normal images to N(0, I) everywhere. A trained one does not quite, and what is left differs between
classes, directions and locations. So its vectors are first taken to the Gaussian that they have on training normals of
the class, as PaDiM (Defard et al., 2021) takes features; then their distance from the nearest vector of those images is
measured, as PatchCore (Roth et al., 2022) does with features, for what is left may have any shape. Whether an image is
normal is judged by these scores on the scale that they have at each location. The map shows them on the scale of the
class: locations where normal images differ much would look empty in it otherwise. No label is used: the class is
inferred, and training images are normal.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn

from fmad_dist.base.console import Progress
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerChoice
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.calibration import nearest_class
from fmad_dist.scoring.interface import NormalImages, Scorer, ScoringMethod, Trained, VectorMethod, VectorScorer
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.scoring.memory import Advance, nearest, remember

SHRINK = 0.05  # of the mean variance, added to all: directions without normal variation must not decide alone
MOST_CHANNELS = 1024  # of which a covariance of every class is kept: 4 MB each
MOST_BYTES = 1 << 30  # of the memories of all classes, and of all covariances: at 192 channels 682 full memories
SEARCHED = 16  # images that are compared with their memories at a time
FLOOR = 0.2  # of a class's mean deviation, added to that of every location
FEWEST = 10  # training normals of a class that are looked at, whatever the limit of all is
MOST_VECTORS = 500_000  # of a class that are held at a time: about 1.5 GB at 192 channels in half precision

Part = Annotated[
    SerializeAsAny[VectorMethod],
    ScorerChoice("inversion", usable=lambda kind: issubclass(kind, VectorMethod) and not kind.needs_normals),
]


class DeviationConfig(ScoringMethod):
    name: Literal["deviation"] = "deviation"
    part: Part = Field(InversionConfig(), description="scorer whose vectors are judged, one without draws")
    covariance: bool = Field(
        True,
        description="measure vectors by the covariance of the class's normal images; not above 1024 channels, nor 1 GB "
        "of all classes",
    )
    locations: bool = Field(True, description="measure scores by the mean and deviation they have at that location")
    memory: int = Field(
        4096,
        ge=0,
        description="vectors of each class's normal images that are kept, to score by the nearest; 0 = score by their "
        "mean and covariance alone; fewer where all classes together would take more than 1 GB",
    )
    images: int = Field(4000, ge=1, description="training normals that are looked at, over all classes")
    needs_normals: ClassVar[bool] = True

    @field_validator("memory")
    @classmethod
    def _halves(cls, memory: int) -> int:
        if memory == 1:
            raise ValueError("one half is kept of every second image, so at least 2, or 0 for none")
        return memory

    def build(self, trained: Trained) -> "Deviation":
        channels, classes = trained.shape[0], trained.num_classes
        fitting = MOST_BYTES // (classes * channels * torch.float16.itemsize)
        has_room = classes * channels**2 * torch.float32.itemsize <= MOST_BYTES
        return Deviation(
            self.part.build(trained),
            trained.num_classes,
            trained.shape,
            covariance=self.covariance and channels <= MOST_CHANNELS and has_room,
            locations=self.locations,
            memory=min(self.memory, fitting) if fitting > 1 else 0,
            images=self.images,
        )

    def refusal(self, objective: ObjectiveConfig) -> str | None:
        return self.part.refusal_as_part(objective)

    def changed_options(self) -> dict[str, object]:
        shown = {"part": f"[{self.part.title}]"}
        return {key: shown.get(key, value) for key, value in super().changed_options().items()}


@dataclass(frozen=True, slots=True)
class Normality:
    """What the normal images of one class are like."""

    mean: Tensor  # of vectors, [C], or [0] without covariance
    root: Tensor  # whitening of vectors, [C, C], or [0, 0]
    memory: Tensor  # kept vectors, float16 [M, C]
    location_mean: Tensor  # of scores at each location, [H, W]
    location_std: Tensor

    def cpu(self) -> "Normality":
        return Normality(*(getattr(self, field.name).cpu() for field in fields(self)))


KEPT = {  # of `Deviation` by class, and what of a class's `Normality` it is
    "mean": "mean",
    "root": "root",
    "memory": "memory",
    "place_mean": "location_mean",
    "place_std": "location_std",
}


class Deviation(nn.Module, Scorer):
    """Scores of `part`, measured by what they are on normal images."""

    class_means: Tensor  # [K, C], whitened features
    mean: Tensor  # [K, C], or [K, 0] without covariance
    root: Tensor  # [K, C, C], or [K, 0, 0]
    memory: Tensor  # float16 [K, M, C], M = 0 without
    place_mean: Tensor  # of scores at each location, [K, H, W], or [K, 0, 0] without; named as in detectors' files
    place_std: Tensor

    def __init__(
        self,
        part: VectorScorer,
        num_classes: int,
        shape: tuple[int, int, int],
        covariance: bool,
        locations: bool,
        memory: int,
        images: int = 4000,
    ) -> None:
        super().__init__()
        self.part = part
        self.covariance = covariance
        self.locations = locations
        self.images = images
        self.is_fitted = False
        channels, height, width = shape
        side = channels if covariance else 0
        grid = (height, width) if locations else (0, 0)
        for name, size in (
            ("class_means", (channels,)),
            ("mean", (side,)),
            ("root", (side, side)),
            ("place_mean", grid),
            ("place_std", grid),
        ):
            self.register_buffer(name, torch.zeros(num_classes, *size))
        self.register_buffer("memory", torch.zeros(num_classes, memory, channels, dtype=torch.float16))

    @property
    def evaluations(self) -> int:
        return self.part.evaluations

    def forward(self, field: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W], or with locations [B, 2, H, W] of any sign: on the scale
        of each location to judge the image, and on that of its class for the map. Nothing is random.

        Raises:
            UserError: it was never fitted.
        """
        if not self.is_fitted:
            raise UserError("scorer deviation: it was never fitted to training normals; train or export with it.")
        classes = nearest_class(x.mean(dim=(2, 3)), self.class_means)
        scores = self._distances(self.part.vectors(field, x), classes)
        if not self.locations:
            return scores
        mean, std = self.place_mean[classes], self.place_std[classes]
        level, scale = mean.mean(dim=(1, 2), keepdim=True), std.mean(dim=(1, 2), keepdim=True)
        return torch.stack([(scores - mean) / std, (scores - level) / scale], dim=1)

    def _distances(self, vectors: Tensor, classes: Tensor) -> Tensor:
        """Scores [B, H, W] of the vectors [B, C, H, W]."""
        if vectors.device.type != "cpu" or torch.compiler.is_exporting():
            scores = self._measured(vectors, classes)
        else:  # one by one: the bits of an image's scores do not depend on the batch it came in
            pairs = zip(vectors.split(1), classes.split(1), strict=True)
            scores = torch.cat([self._measured(one, number) for one, number in pairs])
        return scores.unflatten(1, vectors.shape[2:])

    def _measured(self, vectors: Tensor, classes: Tensor) -> Tensor:
        """Scores [B, H W] of the vectors [B, C, H, W], all images at once."""
        flat = vectors.flatten(2)  # [B, C, H W]
        if self.covariance:
            flat = self.root[classes] @ (flat - self.mean[classes][:, :, None])
        if not self.memory.shape[1]:
            return flat.square().mean(dim=1)
        if torch.compiler.is_exporting():
            return nearest(flat.mT, self.memory[classes])
        parts = zip(flat.mT.split(SEARCHED), classes.split(SEARCHED), strict=True)
        return torch.cat([nearest(part, self.memory[numbers]) for part, numbers in parts])

    def normality(self, vectors: Tensor, advance: Advance | None = None) -> Normality:
        """What the normal images of a class are like, from the vectors [n, C, H, W] (any float type) of all that are
        looked at. `advance` is told of each vector that is kept."""
        mean, root = torch.zeros(0), torch.zeros(0, 0)
        flat = [one.float().flatten(1) for one in vectors]
        if self.covariance:
            mean, root = gaussian(vectors)
            flat = [root @ (one - mean[:, None]) for one in flat]
        size = self.memory.shape[1]
        if size:
            memory, scores = remember(flat, size, advance)
        else:
            memory, scores = self.memory[0], torch.stack([one.square().mean(dim=0) for one in flat])
        return Normality(mean, root, memory, *location_moments(scores.unflatten(1, vectors.shape[2:])))

    def fit(self, normals: NormalImages) -> "Deviation":
        """The scorer fitted to training normals of every class.

        Every rank calls. A class is one rank's work, so the number of ranks does not change a bit.

        Raises:
            UserError: no training image of a class can be read.
        """
        world, counts = normals.world, normals.training_counts
        limit = max(FEWEST, min(MOST_VECTORS // normals.num_locations, common_limit(counts, self.images)))
        own = range(world.rank, len(counts), world.size)
        total = sum(min(limit, counts[number]) for number in own)
        with Progress(world.own("fit to training normals"), total, shown=world.is_main) as progress:
            found = {number: self._fit_class(normals, number, limit, progress).cpu() for number in own}
        return self._with(normals.class_means, {name: self._of_all(name, found, world) for name in KEPT})

    def _of_all(self, name: str, found: Mapping[int, Normality], world: World) -> Tensor:
        """A kept tensor of all classes, [K, ...], from what every rank found of its own."""
        buffer = self.get_buffer(name)
        every = torch.zeros(buffer.shape, dtype=buffer.dtype)
        for number, one in found.items() if every.numel() else ():
            every[number] = getattr(one, KEPT[name])
        return torch.from_numpy(world.combined(every.numpy()))

    def _fit_class(self, normals: NormalImages, number: int, limit: int, progress: Progress) -> Normality:
        """From at most `limit` training normals of one class."""
        name, kept = normals.class_names[number], 0

        def keep(count: int) -> None:  # with many images that takes a minute
            nonlocal kept
            kept += count
            progress.advance(0, note=f"{name}: {kept} vectors kept")

        vectors: list[Tensor] = []
        for x in normals.training(number, limit):
            with torch.inference_mode():
                vectors.append(self.part.vectors(normals.field, x).half())
            progress.advance(len(x), note=name)
        if not vectors:
            raise UserError(f"class {name}: no training image could be read; restore its shards.")
        return self.normality(torch.cat(vectors), keep)

    def with_normality(self, class_means: Tensor, found: Sequence[Normality]) -> "Deviation":
        """The scorer fitted to `found`, one for each class in the order of the classes; `class_means` [K, C] are of
        whitened features and tell which class an image is measured by."""
        wanted = [name for name in KEPT if self.get_buffer(name).numel()]
        return self._with(
            class_means, {name: torch.stack([getattr(one, KEPT[name]) for one in found]) for name in wanted}
        )

    def _with(self, class_means: Tensor, kept: Mapping[str, Tensor]) -> "Deviation":
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # or this one's tensors would be replaced too
        for name, tensor in {"class_means": class_means.clone(), **kept}.items():
            setattr(other, name, tensor.to(self.class_means.device))
        other.is_fitted = True
        return other

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *given: Any) -> None:
        for name in KEPT:  # a detector made under another limit keeps what it has
            if f"{prefix}{name}" in state:
                setattr(self, name, torch.zeros_like(state[f"{prefix}{name}"], device=self.class_means.device))
        self.covariance = self.root.numel() > 0
        super()._load_from_state_dict(state, prefix, *given)
        self.is_fitted = True


def gaussian(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and the lower triangular root [C, C] that takes the vectors [n, C, H, W] to about unit covariance."""
    channels = vectors.shape[1]
    total = torch.zeros(channels, dtype=torch.float64, device=vectors.device)
    squares = torch.zeros(channels, channels, dtype=torch.float64, device=vectors.device)
    for one in vectors:
        columns = one.flatten(1).double()
        total += columns.sum(dim=1)
        squares += columns @ columns.T
    count = len(vectors) * vectors[0, 0].numel()
    mean = total / count
    covariance = squares / count - torch.outer(mean, mean)
    scale = covariance.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(channels, dtype=torch.float64, device=vectors.device)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance + SHRINK * scale * identity))
    return mean.float(), root.float()


def location_moments(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [H, W] of scores [n, H, W] over images and the eight neighbours, the latter with a floor."""
    moments = torch.stack([scores.mean(dim=0), scores.square().mean(dim=0)])
    around = F.avg_pool2d(F.pad(moments[None], (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)[0]
    deviation = (around[1] - around[0].square()).clamp_min(0.0).sqrt()
    return around[0], (deviation + FLOOR * deviation.mean()).clamp_min(1e-6)


def common_limit(counts: Sequence[int], total: int) -> int:
    """The largest limit with which `counts`, cut to it, do not exceed `total` together."""
    left = total
    for number, count in enumerate(ordered := sorted(counts)):
        share = left // (len(ordered) - number)
        if share < count:
            return share
        left -= count
    return max(counts)
