"""Who am I among the processes of this job: the only place that reads the launcher's environment."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    import torch


@dataclass(frozen=True, slots=True)
class World:
    """Position of this process: `rank` in [0, size), `local_rank` on its node, `node` in [0, number of nodes)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """Read what `accelerate launch` / torchrun set; a plain `python` start is a world of one."""
        read = os.environ.get
        return cls(
            rank=int(read("RANK", "0")),
            size=int(read("WORLD_SIZE", "1")),
            local_rank=int(read("LOCAL_RANK", "0")),
            node=int(read("GROUP_RANK", "0")),
        )

    @property
    def device(self) -> "torch.device":
        """This process's GPU, or the CPU where there is none."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def join(self, backend: str = "gloo", timeout: "timedelta | None" = None) -> None:
        """Meet the other processes, if there are any; `timeout` is that of every collective, None = the library's.

        After a restart torch's static rendezvous hands out the store of the first start, with the addresses of
        processes that are dead; so every start has keys of its own.
        """
        import torch.distributed as dist

        if self.size == 1 or dist.is_initialized():
            return
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout or dist.default_pg_timeout))
        own = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        device = self.device if backend == "nccl" else None
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout, device_id=device)

    def leave(self) -> None:
        """End the connections that `join` made; a process that exits with them open may abort."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files, its log and its tracking."""
        return self.rank == 0

    def own(self, title: str) -> str:
        """The title of progress that counts the share of one process: `predict (this process of 2)`."""
        return title if self.size == 1 else f"{title} (this process of {self.size})"

    def share(self, num_items: int) -> range:
        """The contiguous part of range(num_items) that belongs to this rank; parts differ by at most one item."""
        base, extra = divmod(num_items, self.size)
        start = self.rank * base + min(self.rank, extra)
        return range(start, start + base + (self.rank < extra))
