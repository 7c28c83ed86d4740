"""The network under accelerate + DeepSpeed ZeRO, on CUDA or on CPU over gloo.

The data loader and the learning rate are ours and are never given to `accelerator.prepare`: it would shard the
already sharded stream again, and step a scheduler once per process.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

import fmad_dist
from fmad_dist.base.deepspeed import check_attributes, import_deepspeed
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import TrainConfig
from fmad_dist.networks.build import Network, compile_network
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.deepspeed_types import Accelerate, DeepSpeedEngine, ZeroOptimizer
from fmad_dist.training.gradients import BUCKET_ELEMENTS, bucket_elements, skip_needless_passes

AHEAD_ELEMENTS = 25_000_000  # ZeRO-3: parameters fetched ahead at a time
LIVE_ELEMENTS = 100_000_000  # ZeRO-3: parameters held gathered
COLLECTIVE_TIMEOUT = timedelta(minutes=60)  # computing a feature cache may leave a quick rank waiting for a slow one


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed engine with what the rest of training needs to know about it."""

    accelerator: Accelerate
    deepspeed: DeepSpeedEngine  # call it to run the network
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def network(self) -> Network:
        return self.deepspeed.module

    @property
    def optimizer(self) -> ZeroOptimizer:
        return self.deepspeed.optimizer

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def start_accelerator(config: TrainConfig, layout: BatchLayout, world: World) -> Accelerate:
    """Join the process group and select DeepSpeed.

    Raises:
        UserError: bf16 is asked for on a GPU that lacks it, or accelerate did not take the DeepSpeed path.
    """
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    dtype = compute_dtype(config)
    import_deepspeed()
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs

    quiet_libraries()
    # The launcher notes defaults of its own for fields that our complete configuration sets, and would refuse both.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, layout, dtype))
    backend = "gloo" if cpu else "nccl"
    world.join(backend, COLLECTIVE_TIMEOUT)
    accelerator: Accelerate = Accelerator(
        deepspeed_plugin=plugin,
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=COLLECTIVE_TIMEOUT)],
    )
    if accelerator.distributed_type != DistributedType.DEEPSPEED or accelerator.num_processes != layout.world_size:
        raise UserError(
            f"accelerate chose {accelerator.distributed_type} with {accelerator.num_processes} of {layout.world_size} "
            "processes instead of DeepSpeed; start with `fmad train` or with a file of launcher/accelerate/, and unset "
            "ACCELERATE_USE_CPU."
        )
    return accelerator


def build_engine(accelerator: Accelerate, network: Network, config: TrainConfig) -> Engine:
    """Hand the network and AdamW to DeepSpeed.

    Raises:
        UserError: this DeepSpeed lacks what fmad uses of its insides, or no compiler is found for torch.compile.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    if compiles(config, torch.cuda.is_available()):
        compile_network(network)
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    count, processes = sum(weight.numel() for weight in network.parameters()), accelerator.num_processes
    zero["reduce_bucket_size"] = bucket_elements(count, config.zero_stage, processes)
    with _nothing_else_compiled():
        prepared, _ = accelerator.prepare(network, optimizer)
    check_attributes(prepared.optimizer, ["optimizer", "param_groups", "overflow", "dp_process_group"])
    if config.zero_stage == 3:
        check_attributes(next(network.parameters()), ["ds_id", "ds_process_group", "partition_numel"])
    skip_needless_passes(prepared.optimizer, config.zero_stage, processes, accelerator.device)
    return Engine(accelerator, prepared, compute_dtype(config))


@contextmanager
def _nothing_else_compiled() -> Iterator[None]:
    """Switch torch.compile off inside the block, where the network's own compilation has been asked for already.

    DeepSpeed compiles an optimizer that is not used here as soon as it is imported, which loads all of torch's
    compiler: a sixth of the start-up of every process.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def compiles(config: TrainConfig, on_gpu: bool) -> bool:
    """Whether the network is compiled: as asked for, by default on GPUs where ZeRO does not split the weights."""
    return config.compile == "on" or (config.compile == "auto" and on_gpu and config.zero_stage < 3)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """Choose bfloat16 or float32. On a CPU bf16 pays with native instructions alone: more than twice the speed.

    Raises:
        UserError: bf16 is asked for on a GPU that lacks it.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported()
        if config.precision == "bf16" and not native:
            raise UserError("train.precision: this GPU has no bf16; use auto or fp32.")
    else:
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        native = bool(probe is not None and probe())
    use = config.precision == "bf16" or (config.precision == "auto" and native)
    return torch.bfloat16 if use else torch.float32


def smallest_gpu(world: World) -> int | None:
    """Return the bytes of the smallest GPU of the job, None on CPUs: all ranks must decide alike. Every rank calls."""
    own = torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None
    return min(world.gather(own)) if own else None


def deepspeed_config(config: TrainConfig, layout: BatchLayout, dtype: torch.dtype) -> dict[str, Any]:
    """Return DeepSpeed's JSON for this run; every value that accelerate would guess is given."""
    return {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": config.clip,
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": True},  # by the norm, see gradients.py
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": AHEAD_ELEMENTS,
            "stage3_max_live_parameters": LIVE_ELEMENTS,
            "stage3_param_persistence_threshold": 10_000,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }


def describe(engine: Engine, world: World) -> dict[str, Any]:
    """Describe what the run really runs on, for its record."""
    import accelerate
    import deepspeed

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "distributed_type": str(engine.accelerator.distributed_type).removeprefix("DistributedType."),
        "zero_stage": engine.deepspeed.zero_optimization_stage(),
        "world_size": world.size,
        "device": gpu or "cpu",
        "precision": str(engine.dtype).removeprefix("torch."),
        "versions": {
            "fmad-dist": fmad_dist.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "deepspeed": deepspeed.__version__,
        },
    }


def quiet_libraries() -> None:
    """Keep DeepSpeed's and accelerate's start-up chatter out of the log; their warnings and errors stay."""
    import logging

    for name in ("DeepSpeed", "torch.distributed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*(barrier|device_id|lr_scheduler).*")
