"""The rank of this process in its job, read from the launcher's environment here alone, and its collectives."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from datetime import timedelta

    import numpy as np
    import torch

Item = TypeVar("Item")


def is_launched() -> bool:
    """Whether a launcher, `accelerate launch` or torchrun, started this process as one rank of a job."""
    return "LOCAL_RANK" in os.environ


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
        dist = _dist()
        if self.size == 1 or dist.is_initialized():
            return
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout or dist.default_pg_timeout))
        own = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        device = self.device if backend == "nccl" else None
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout, device_id=device)

    def leave(self) -> None:
        """End the connections that `join` made; a process that exits with them open may abort."""
        if _dist().is_initialized():
            _dist().destroy_process_group()

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

    def gather(self, item: Item) -> list[Item]:
        """The picklable items of all ranks in rank order, on every rank; every rank calls."""
        if self.size == 1:
            return [item]
        gathered: list[Any] = [None] * self.size
        _dist().all_gather_object(gathered, item)
        return gathered

    def gather_to_main(self, item: Item) -> list[Item] | None:
        """The picklable items of all ranks in rank order on the main rank, None elsewhere; every rank calls."""
        if self.size == 1:
            return [item]
        gathered: list[Any] | None = [None] * self.size if self.is_main else None
        _dist().gather_object(item, gathered, dst=0)
        return gathered

    def broadcast(self, item: Item, source: int = 0) -> Item:
        """The picklable item of rank `source`, on every rank; every rank calls."""
        if self.size == 1:
            return item
        box = [item]
        _dist().broadcast_object_list(box, src=source)
        return box[0]

    def combined(self, values: "np.ndarray") -> "np.ndarray":
        """Put together, bit by bit and on every rank, arrays of one shape and type in which each rank has filled
        elements of its own and left zeros elsewhere; every rank calls."""
        if self.size == 1:
            return values
        import torch

        dist = _dist()
        found = torch.from_numpy(values.reshape(-1).view("uint8"))  # bytes, so that -0.0 stays what it is
        found = found.to(self.device if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(found)
        return found.cpu().numpy().view(values.dtype).reshape(values.shape)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            _dist().barrier()


def _dist() -> Any:
    """`torch.distributed`, imported when it is needed: it takes a second, which a process on its own can do without."""
    import torch.distributed

    return torch.distributed
