"""How busy the nodes of a job are; read where metrics are logged, so that it costs no thread and no server call."""

from collections.abc import Sequence

import torch

from fmad_dist.world import World

NodeMetrics = dict[str, float]


class NodeMonitor:
    """Usage of this process's node since the last reading; only the first process of a node reads."""

    def __init__(self, world: World) -> None:
        self.prefix = f"system/node{world.node}"
        self.reads = world.local_rank == 0
        self.read()  # psutil's shares are of the time since the last call

    def read(self) -> NodeMetrics:
        """Shares in percent, memory in GiB: `system/node<n>/cpu_percent`, `memory_gib`, and per GPU
        `gpu<i>_memory_gib` and, where the driver tells, `gpu<i>_percent`; empty on other processes."""
        if not self.reads:
            return {}
        import psutil

        memory = psutil.virtual_memory()
        found = {"cpu_percent": psutil.cpu_percent(), "memory_gib": (memory.total - memory.available) / 2**30}
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            found[f"gpu{number}_memory_gib"] = (total - free) / 2**30
            found |= _utilization(number)
        return {f"{self.prefix}/{name}": float(value) for name, value in found.items()}


def joined(parts: Sequence[NodeMetrics]) -> NodeMetrics:
    """The metrics of all nodes from those of all processes."""
    return {name: value for part in parts for name, value in part.items()}


def _utilization(number: int) -> NodeMetrics:
    try:
        return {f"gpu{number}_percent": float(torch.cuda.utilization(number))}
    except (ModuleNotFoundError, RuntimeError):  # needs the driver's Python package
        return {}
