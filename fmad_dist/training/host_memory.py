"""What a process of a training holds in the host's memory that grows with the job, beside its libraries.

Counted are arrays of every image, sums of every class, the scorer of all classes, read-ahead batches and the part of a
checkpoint that is on its way to storage. The bytes per image of the plan were measured at 400,000 images; those of a
reader are counted from its arrays, and the libraries' are an allowance.
"""

from dataclasses import dataclass, fields

import torch

from fmad_dist.config.run import RunConfig
from fmad_dist.features.sums import PART_IMAGES
from fmad_dist.networks.cost import NetworkCost
from fmad_dist.scoring.interface import Trained, build_scorer
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.budget import checkpoint_bytes

LIBRARIES_BYTES = 1 << 30  # Python, torch, DeepSpeed and their libraries
PLAN_BYTES = 140  # of an image while an epoch is planned
READER_BYTES = 48  # of an image in a reader process: rows, classes and the order of an epoch
PREFETCHED = 4 + 2  # batches of a reader process: waiting for the training, and on their way


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of one training process with its reader processes."""

    plan: int
    readers: int
    sums: int  # of features by class
    scorer: int
    checkpoint: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self)) + LIBRARIES_BYTES


def host_memory(
    config: RunConfig, batch: BatchLayout, cost: NetworkCost, shape: tuple[int, int, int], images: int, classes: int
) -> HostMemory:
    """Estimate the bytes of one process; `shape` is that of an image's features, `images` are those of the index."""
    with torch.device("meta"):
        scorer = build_scorer(config.scorer, Trained(config.objective, 0.0, shape, classes, config.train.seed))
    held = scorer.buffers() if isinstance(scorer, torch.nn.Module) else ()
    pixels = 3 * config.features.image_size**2
    sample = pixels if config.features.cache is None else 2 * shape[0] * shape[1] * shape[2]
    readers = config.data.workers * (READER_BYTES * images + PREFETCHED * batch.micro_batch * sample)
    return HostMemory(
        plan=PLAN_BYTES * images,
        readers=readers,
        sums=2 * 8 * (1 + 3 * shape[0]) * (classes + images // PART_IMAGES),
        scorer=sum(one.nbytes for one in held),
        checkpoint=checkpoint_bytes(cost) // batch.world_size,
    )
