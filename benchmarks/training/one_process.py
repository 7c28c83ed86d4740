"""`fmad train` on one process inside this one, without the checkpoint and the calibration at its end."""

import os

import torch

from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig


def train_without_saving(config: RunConfig, port: int) -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= alone | {"ACCELERATE_USE_DEEPSPEED": "true"}  # as `fmad train` sets them
    if not torch.cuda.is_available():
        os.environ |= {"DS_ACCELERATOR": "cpu", "THP_MEM_ALLOC_ENABLE": "1"}
    from fmad_dist.training import loop
    from fmad_dist.training.checkpoint_writer import CheckpointWriter

    CheckpointWriter.save = lambda *given: None  # type: ignore[method-assign]
    loop.finish_run = lambda job: None
    loop.train(config, World.from_environment())
