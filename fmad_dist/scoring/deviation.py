"""How far an image is from what a scorer says of normal images: of its class, and at that place [ours].

A perfect flow takes normal images to N(0, I) everywhere. A trained one does not quite, and what is left differs between
classes, directions and places. So its vectors are first taken to the Gaussian that they have on training normals of the
class, as PaDiM (Defard et al., 2021) takes features; then their distance from the nearest vector of those images is
measured, as PatchCore (Roth et al., 2022) does with features, for what is left may have any shape. Whether an image is
normal is judged by these scores on the scale that they have at each place. The map shows them on the scale of the
class: places where normal images differ much would look empty in it otherwise. No label has a say: the class is
inferred, and training images are normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmad_dist.errors import UserError
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.calibration import nearest_class
from fmad_dist.scoring.coreset import Advance
from fmad_dist.scoring.interface import VectorScorer
from fmad_dist.scoring.memory import nearest, remember

SHRINK = 0.05  # of the mean variance, added to all: directions without normal variation must not decide alone
MOST_CHANNELS = 1024  # of which a covariance of every class is kept: 4 MB each
SEARCHED = 16  # images that are compared with their memories at a time
FLOOR = 0.2  # of a class's mean deviation, added to that of every place


@dataclass(frozen=True, slots=True)
class Normality:
    """Of one class: mean [C] and whitening [C, C] of vectors, empty without covariance; kept vectors float16 [M, C];
    mean and deviation of scores at each place [H, W]."""

    mean: Tensor
    root: Tensor
    memory: Tensor
    place_mean: Tensor
    place_std: Tensor


class Deviation(nn.Module):
    """Scores of `part`, measured by what they are on normal images. A module, for its tensors are saved and move with
    the detector's."""

    class_means: Tensor  # [K, C], whitened features
    mean: Tensor  # [K, C], or [K, 0] without covariance
    root: Tensor  # [K, C, C], or [K, 0, 0]
    memory: Tensor  # float16 [K, M, C], M = 0 without
    place_mean: Tensor  # [K, H, W], or [K, 0, 0] without locations
    place_std: Tensor

    def __init__(
        self,
        part: VectorScorer,
        num_classes: int,
        shape: tuple[int, int, int],
        covariance: bool,
        locations: bool,
        memory: int,
    ) -> None:
        super().__init__()
        self.part = part
        self.covariance = covariance
        self.locations = locations
        self.is_fitted = False
        channels, height, width = shape
        side = channels if covariance else 0
        place = (height, width) if locations else (0, 0)
        for name, size in (
            ("class_means", (channels,)),
            ("mean", (side,)),
            ("root", (side, side)),
            ("place_mean", place),
            ("place_std", place),
        ):
            self.register_buffer(name, torch.zeros(num_classes, *size))
        self.register_buffer("memory", torch.zeros(num_classes, memory, channels, dtype=torch.float16))

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.part.evaluations

    def forward(self, field: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W], or with locations [B, 2, H, W] of any sign: on the scale
        of each place to judge the image, and on that of its class for the map. Nothing is random.

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
        """From the vectors of all chosen training normals of a class, [n, C, H, W] of any float type. `advance` is told
        of each vector that is kept."""
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
        return Normality(mean, root, memory, *places(scores.unflatten(1, vectors.shape[2:])))

    def take(self, class_means: Tensor, found: Sequence[Normality]) -> None:
        """Be fitted to what was found, in the order of the classes."""
        device = self.class_means.device
        self.class_means = class_means.to(device).clone()
        self.mean = torch.stack([one.mean for one in found]).to(device)
        if self.covariance:
            self.root = torch.stack([one.root for one in found]).to(device)
        self.memory = torch.stack([one.memory for one in found]).to(device)
        if self.locations:
            self.place_mean = torch.stack([one.place_mean for one in found]).to(device)
            self.place_std = torch.stack([one.place_std for one in found]).to(device)
        self.is_fitted = True

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
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


def places(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [H, W] of scores [n, H, W] over images and the eight neighbours, the latter with a floor."""
    moments = torch.stack([scores.mean(dim=0), scores.square().mean(dim=0)])
    around = F.avg_pool2d(F.pad(moments[None], (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)[0]
    deviation = (around[1] - around[0].square()).clamp_min(0.0).sqrt()
    return around[0], (deviation + FLOOR * deviation.mean()).clamp_min(1e-6)
